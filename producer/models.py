"""Which models the fleet serves, and their limits: `nirvana:models` in Valkey.

Workers write an entry each few seconds; a client reads the table to fill in defaults, to choose
the queue, and to refuse early what a worker would refuse late.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

import redis

from producer.contract import GenerationJob, canonical_json
from producer.errors import InvalidJob, UnknownModel

MODELS_KEY: Final = "nirvana:models"
ENTRY_LIFETIME_S: Final = 86_400.0  # a fleet scaled to zero for the night still takes jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that a GPU worker has loaded, and what it allows."""

    slug: str
    is_default: bool
    num_inference_steps: int  #: where a job names none
    guidance_scale: float  #: where a job names none
    height: int  #: pixels, where a job names none
    width: int  #: pixels, where a job names none
    size_multiple: int  #: pixels: height and width are multiples of it
    size_min: int  #: pixels
    size_max: int  #: pixels
    seconds_per_step: float  #: of one job alone, as measured; 0 until the first job
    jobs_in_flight: int  #: how many jobs one worker takes on at once

    def complete(self, job: GenerationJob) -> GenerationJob:
        """Fill in what the job left to the model; raises InvalidJob outside its limits."""
        for name in ("height", "width"):
            self._check_size(name, getattr(job, name))
        defaults = {
            "model": self.slug,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        return job.model_copy(
            update={name: value for name, value in defaults.items() if getattr(job, name) is None}
        )

    def _check_size(self, name: str, pixels: int | None) -> None:
        if pixels is None:
            return
        if pixels % self.size_multiple or not self.size_min <= pixels <= self.size_max:
            raise InvalidJob(
                name,
                f"must be a multiple of {self.size_multiple}, {self.size_min} to {self.size_max},"
                f" for model '{self.slug}'; got {pixels}",
            )


_FIELDS: Final = frozenset(field.name for field in fields(ServedModel))


class ModelTable:
    """The fleet's served models, as its workers last told."""

    def __init__(self, connection: redis.Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._clock = clock

    def announce(self, model: ServedModel) -> None:
        """Say that a worker serves `model` now."""
        entry = asdict(model) | {"seen_at": self._clock()}
        self._connection.hset(MODELS_KEY, model.slug, canonical_json(entry))

    def served(self) -> dict[str, ServedModel]:
        """Models announced within ENTRY_LIFETIME_S, by slug."""
        entries = [json.loads(raw) for raw in self._connection.hvals(MODELS_KEY)]
        oldest = self._clock() - ENTRY_LIFETIME_S
        return {
            entry["slug"]: ServedModel(**{name: entry[name] for name in _FIELDS})
            for entry in entries
            # A newer fleet's entry may say more; one that says less is of an older fleet.
            if entry["seen_at"] >= oldest and entry.keys() >= _FIELDS
        }

    def choose(self, slug: str | None) -> ServedModel:
        """The model of that name, or the fleet's default; raises UnknownModel."""
        return choose_model(self.served(), slug)


def choose_model(served: Mapping[str, ServedModel], slug: str | None) -> ServedModel:
    """The model of that name, or the default among `served`; raises UnknownModel."""
    if slug is None:
        defaults = [name for name, model in served.items() if model.is_default]
        if defaults:
            return served[min(defaults)]
    elif slug in served:
        return served[slug]
    raise UnknownModel(slug, list(served))
