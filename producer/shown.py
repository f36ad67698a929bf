"""What Flower shows as a job's arguments: a line for people, without secrets.

Metadata, the webhook and its address stay out: whoever watches the queue need not know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PROMPT_CHARACTERS: Final = 60
_VALUE_CHARACTERS: Final = 40

# Told only where a job differs from the ordinary one.
_ORDINARY: Final[Mapping[str, object]] = {
    "user": None,
    "namespace": "default",
    "seed": None,
    "priority": "standard",
    "cache": "use",
}


def shown_arguments(fields: object) -> str:
    """Describe a job's wire form, or whatever somebody sent in its place; raises nothing."""
    if not isinstance(fields, Mapping):
        return "no job"
    parts = [f'"{_shortened(fields.get("prompt"), PROMPT_CHARACTERS)}"']
    for name, ordinary in _ORDINARY.items():
        value = fields.get(name, ordinary)
        if value != ordinary:
            parts.append(f"{name}={_shortened(value, _VALUE_CHARACTERS)}")
    return " ".join(parts)


def _shortened(value: object, num_characters: int) -> str:
    """A scalar on one line; anything else could hold what must not be shown."""
    if value is None or not isinstance(value, str | int | float):
        return "" if value is None else "?"
    # Not all of a message's megabyte is looked at, only what could be seen of it.
    text = " ".join(str(value)[: 4 * num_characters].split())
    return text if len(text) <= num_characters else text[: num_characters - 1] + "…"
