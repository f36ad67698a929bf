"""Small prompt logs for tests: users who iterate on a prompt of their own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SUBJECTS = ("fox", "castle", "teapot", "lighthouse", "robot", "orchard", "violin", "glacier")
PLACES = ("in the snow", "at night", "on a hill", "under water", "in a library", "by the sea")
STYLES = ("oil painting", "pencil sketch", "watercolour", "film still", "paper collage")


def log_rows(num_rows: int, *, num_users: int = 4, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with prompt, user and time; each user changes one word at a time, or starts anew."""
    chance = random.Random(seed)
    prompts = [_new_prompt(chance) for _ in range(num_users)]
    for number in range(num_rows):
        user = chance.randrange(num_users)
        place = chance.randrange(4)
        if place == 3:
            prompts[user] = _new_prompt(chance)
        else:
            prompts[user][place] = _new_prompt(chance)[place]
        yield {
            "prompt": "a {} {}, {}".format(*prompts[user]),
            "user": f"u{user}",
            "submitted_at": float(number),
        }


def write_log(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _new_prompt(chance: random.Random) -> list[str]:
    return [chance.choice(SUBJECTS), chance.choice(PLACES), chance.choice(STYLES)]
