"""Malformed jobs, made from the wire form's JSON schema and around it.

The fuzzer knows which fields it broke, so a test needs no second opinion from the code under test:
a job with broken fields must be refused with a message that names one of them, any other must run.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from producer.contract import GenerationJob
from producer.models import ServedModel

JOB: Final = "job"  # what a refusal names where no single field is to blame

_OF_TYPE: Final[dict[str, list[Any]]] = {
    "null": [None],
    "boolean": [True, False],
    "integer": [7, 0, -3],
    "number": [1.5, -0.25],
    "string": ["seven", "", "7"],
    "array": [[], ["a"], [[[]]]],
    "object": [{}, {"a": 1}],
}
_UNKNOWN_NAMES: Final = (
    *("promt", "Prompt", "steps", "__class__", "prompt ", "width.height", "", "x" * 5_000),
    *("\N{SNOWMAN}", "\x00", "\x1b[31m", "\ud800", "n\ner", "constructor"),
)
_UNFIT_TEXTS: Final = (
    "",
    " ",
    "A b",
    "a/b",
    "../x",
    "é",
    "x" * 5_000,
    "a\n",
    "\x00",
    "'; --",
    "%s",
)
_UNSTORABLE: Final = ("a\x00", "\ud800", "ok \udfff")
_UNFIT_TIMES: Final = (
    *("yesterday", "2026-13-01T00:00:00Z", "2026-11-26T10:00:00", "9999-12-31T23:59:59Z"),
    *("1800-01-01T00:00:00Z", "", 1_764_000_000, "1764000000"),
)
# Values that are allowed, and cheap to run.
_FIT: Final[dict[str, tuple[Any, ...]]] = {
    "version": (1,),
    "prompt": ("a fox", "x" * 4_000, "\N{FOX FACE}", "<script>", "%s {0} \\x00", "a\u202eb"),
    "negative_prompt": ("", "blur"),
    "model": (None,),
    "num_inference_steps": (1, 2),
    "guidance_scale": (0, 1.0, 30, None),
    "height": (16, None),
    "width": (16, None),
    "seed": (0, 2**53 - 1, None),
    "namespace": ("default", "a", "9-" * 32),
    "user": ("ada", "\N{FOX FACE}", "x" * 128, None),
    "priority": ("interactive", "standard", "batch"),
    "cache": ("use", "bypass", "refresh"),
    "webhook": (None,),
    "metadata": ({}, {"": ""}, {"order": "7"}, {str(i): "x" for i in range(16)}),
    "submitted_at": (None,),
    "deadline_s": (None, 86_400, 3_600.5),
    "job_id": (None,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzedJob:
    """What is sent, and which of its fields a refusal may name; none: it must run."""

    sent: Any
    broken: frozenset[str]

    def refuses(self, field: str) -> bool:
        """Whether a refusal that names `field` names one that is broken."""
        return any(_is_named(name, field) for name in self.broken)

    @property
    def line(self) -> bytes:
        """The job as a line of a file."""
        return json.dumps(self.sent).encode()


class JobFuzzer:
    """Makes the same jobs for the same seed."""

    def __init__(self, seed: int, model: ServedModel) -> None:
        self._random = random.Random(seed)
        self._model = model
        self._schema = GenerationJob.model_json_schema()
        assert set(_FIT) == set(self._schema["properties"]), "a new field needs its fit values"

    def jobs(self, count: int) -> Iterator[FuzzedJob]:
        """So many jobs; about one in ten is as it should be."""
        return (self._job() for _ in range(count))

    def _job(self) -> FuzzedJob:
        job = {
            "prompt": self._fit("prompt"),
            "num_inference_steps": self._fit("num_inference_steps"),
        }
        for name in self._random.sample(sorted(_FIT), self._random.randint(0, 4)):
            job[name] = self._fit(name)
        kind = self._random.random()
        if kind < 0.04:
            sent = self._random.choice([[job], "a fox", None, 7, 1.5, True, [], [[job]]])
            return FuzzedJob(sent=sent, broken=frozenset({JOB}))
        broken: set[str] = set()
        if kind > 0.14:
            for _ in range(self._random.choice([1, 1, 1, 2, 3])):
                broken.add(self._break(job))
        return FuzzedJob(sent=job, broken=frozenset(broken))

    def _fit(self, name: str) -> Any:
        return self._random.choice(_FIT[name])

    def _break(self, job: dict[str, Any]) -> str:
        """Break one field of the job; returns its name."""
        kind = self._random.random()
        if kind < 0.1:
            name = self._random.choice(_UNKNOWN_NAMES)
            job[name] = self._random.choice([1, None, "x", {}])
            return name
        if kind < 0.14:
            job.pop("prompt", None)
            return "prompt"
        name = self._random.choice(sorted(_FIT))
        job[name] = self._random.choice(self._unfit(name, self._schema["properties"][name]))
        return name

    def _unfit(self, name: str, part: dict[str, Any]) -> list[Any]:
        """Values that the schema, or the model, does not allow for a field."""
        by_name: dict[str, Callable[[], list[Any]]] = {
            "prompt": lambda: [" ", "\n\t", *_UNSTORABLE],
            "negative_prompt": lambda: list(_UNSTORABLE),
            "user": lambda: list(_UNSTORABLE),
            "model": lambda: ["huge", "tiny.2"],
            "height": self._unfit_sizes,
            "width": self._unfit_sizes,
            "webhook": self._unfit_webhooks,
            "metadata": _unfit_metadata,
            "submitted_at": lambda: list(_UNFIT_TIMES),
            "job_id": lambda: ["seven", "", "0" * 31, "{}"],
        }
        return self._outside(part) + by_name.get(name, list)()

    def _outside(self, part: dict[str, Any]) -> list[Any]:
        choices = [self._followed(choice) for choice in part.get("anyOf", [part])]
        types = {choice["type"] for choice in choices}
        if "number" in types:
            types.add("integer")
        unfit = [v for kind, values in _OF_TYPE.items() if kind not in types for v in values]
        unfit.append(_nested(200))
        for choice in choices:
            unfit += _beyond(choice)
        return unfit

    def _followed(self, part: dict[str, Any]) -> dict[str, Any]:
        reference = part.get("$ref", "")
        return dict(self._schema["$defs"][reference.rpartition("/")[2]]) if reference else part

    def _unfit_sizes(self) -> list[Any]:
        model = self._model
        sizes = [model.size_min - model.size_multiple, model.size_max + model.size_multiple]
        return [*sizes, model.size_min + 1]

    def _unfit_webhooks(self) -> list[Any]:
        """Neither target, both, a broken one, and fields that are none."""
        fit = {"url": "http://127.0.0.1:1/hook"}
        webhook = self._schema["$defs"]["Webhook"]["properties"]
        nested = [
            {**(fit if name != "endpoint" else {}), name: value}
            for name, part in webhook.items()
            for value in self._outside(part)
        ]
        return [
            {"endpoint": "a", **fit},
            {"endpoint": "a", "secret_name": "b"},
            {**fit, "x": 1},
            {**fit, "\ud800": 1},
            {**fit, "events": []},
            {**fit, "events": ["job.exploded"]},
            *nested,
        ]


def _unfit_metadata() -> list[Any]:
    return [
        {str(number): "" for number in range(17)},
        {"a": 1},
        {"a": None},
        {"a": {"b": "c"}},
        {"a": "x" * 513},
        {"x" * 513: "a"},
        {"a\x00": "b"},
        {"a": "\ud800"},
    ]


def _beyond(part: dict[str, Any]) -> list[Any]:
    """Values of the right type, past each limit that the schema states."""
    unfit: list[Any] = []
    if "minimum" in part:
        unfit += [part["minimum"] - 1, part["maximum"] + 1, 10**30, -(10**30)]
        unfit += [float("nan"), float("inf"), float("-inf"), 1e308, str(part["minimum"])]
    if "maxLength" in part:
        unfit += ["x" * (part["maxLength"] + 1), "x" * 200_000]
    if part.get("minLength"):
        unfit.append("")
    if "pattern" in part:
        pattern = re.compile(part["pattern"].replace("$", r"\Z"))
        unfit += [text for text in _UNFIT_TEXTS if not pattern.match(text)]
    if "enum" in part:
        unfit += ["high", "", part["enum"][0].upper(), part["enum"][0] + " "]
    if "const" in part:
        unfit += [part["const"] + 1, 0, -1, 10**30]
    return unfit


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def _is_named(name: str, field: str) -> bool:
    """A refusal names part of a field as `webhook.url`, and shows a client's own key escaped."""
    if not name:
        return field == JOB
    shown = name.encode("unicode_escape").decode()
    return field == shown or field.startswith((f"{name}.", shown[:64] + "..."))
