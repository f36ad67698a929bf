"""Writes docs/settings.md from the settings themselves: `python -m fleet.settings_page`.

A test compares the page with what this prints, so that it cannot drift.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from cache.settings import CacheSettings
from fleet.settings import FleetSettings
from producer.settings import ProducerSettings
from workers.settings import WorkerSettings

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

_SECTIONS: Final[tuple[tuple[str, type[BaseSettings]], ...]] = (
    ("One machine: `nirvana up`", FleetSettings),
    ("Clients and workers: the queue", ProducerSettings),
    ("Workers", WorkerSettings),
    ("The cache", CacheSettings),
)

_HEAD: Final = """# Settings

Environment variables, checked when a process starts; an error names the variable. An empty variable
counts as unset. Made by `python -m fleet.settings_page`.
"""


def render() -> str:
    """Compose the page."""
    parts, seen = [_HEAD], set[str]()
    for title, settings in _SECTIONS:
        rows = [
            _row(name, field) for name, field in settings.model_fields.items() if name not in seen
        ]
        seen |= set(settings.model_fields)
        parts.append(f"\n## {title}\n\n| variable | default | |\n|---|---|---|\n" + "".join(rows))
    return "".join(parts)


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    return f"| `NIRVANA_{name.upper()}` | {_default(name, field)} | {meaning} |\n"


def _default(name: str, field: FieldInfo) -> str:
    if name == "home":
        return "`~/.local/state/nirvana`"
    if field.is_required():
        return "required"
    return _shown(field.get_default())


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
