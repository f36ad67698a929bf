"""Time and memory of `nirvana simulate` by the length of the log, up to a million prompts.

    python -m benchmarks.simulate_scaling --rows 100000 1000000 --json

The logs are made here: users who change a word of their prompt, or start anew; new users come with
the log's length, as in a real service. They are embedded by hashed n-grams, since a network would
take hours. Each length runs in a process of its own, with nothing on disk from before: one policy
at one capacity. Sharing by user searches exactly, by namespace with HNSW above 65,536 rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import string
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from cache.entry import StateKind
from cache.settings import Policy
from evaluation.embedders import Ngrams
from evaluation.prepared import prepare
from evaluation.sharing import SharedBy
from evaluation.simulate import Grid, simulate
from evaluation.trace import Trace

ROWS: Final = (100_000, 300_000, 1_000_000)
PROMPTS_OF_A_USER: Final = 20  # on average, as in the Discord logs
ACTIVE_USERS: Final = 50
WORDS: Final = 5_000
WORDS_OF_A_PROMPT: Final = 12


def main() -> int:
    """Measure each length with each kind of sharing."""
    arguments = _arguments()
    spawned = multiprocessing.get_context("spawn")
    print(f"{'rows':>10} {'shared by':>10} {'CPU s':>9} {'s / 100k':>9} {'MiB':>7} {'saved':>8}")
    runs = []
    for shared_by in arguments.sharing:
        for num_rows in arguments.rows:
            with spawned.Pool(1) as process:  # memory is counted from the process's start
                found = process.apply(measure, (num_rows, shared_by))
            runs.append(found)
            print(
                f"{num_rows:>10,} {shared_by:>10} {found['seconds']:>9.1f}"
                f" {found['seconds'] / num_rows * 1e5:>9.1f} {found['peak_mib']:>7.0f}"
                f" {found['savings']:>8.2%}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"runs": runs}))
    return 0


def measure(num_rows: int, shared_by: SharedBy) -> dict[str, Any]:
    """Embed, search and replay one log; in a fresh process."""
    trace = synthetic_trace(num_rows, seed=0)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(trace, Ngrams(), cache_dir=Path(folder))
        embedded = time.process_time()
        grid = Grid(
            policies=(Policy.LCBFU_AGED,),
            capacity_shares=(0.01,),
            state_kinds=(StateKind.FINAL,),
        )
        found = simulate(prepared, grid, shared_by=shared_by)
    return {
        "rows": num_rows,
        "shared_by": shared_by,
        "seconds": time.process_time() - started,
        "embedding_seconds": embedded - started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "savings": found.runs[0].savings,
        "caveats": found.caveats,
    }


def synthetic_trace(num_rows: int, *, seed: int) -> Trace:
    """A log of users who iterate, some at a time."""
    rows = list(_rows(num_rows, random.Random(seed)))
    return Trace(
        name=f"synthetic-{num_rows}",
        prompts=[prompt for prompt, _ in rows],
        users=np.fromiter((user for _, user in rows), np.int32, num_rows),
    )


def _rows(num_rows: int, chance: random.Random) -> Iterator[tuple[str, int]]:
    active = [(user, _new_prompt(chance)) for user in range(ACTIVE_USERS)]
    newest = ACTIVE_USERS
    for _ in range(num_rows):
        place = chance.randrange(ACTIVE_USERS)
        if chance.random() < 1 / PROMPTS_OF_A_USER:
            active[place] = (newest, _new_prompt(chance))
            newest += 1
        user, words = active[place]
        if chance.random() < 0.3:
            words[:] = _new_prompt(chance)
        elif chance.random() < 0.8:
            words[chance.randrange(len(words))] = _word(chance)
        yield " ".join(words), user


def _new_prompt(chance: random.Random) -> list[str]:
    return [_word(chance) for _ in range(WORDS_OF_A_PROMPT)]


def _word(chance: random.Random) -> str:
    """A word by a heavy-tailed popularity."""
    return _spelled(int(WORDS * chance.random() ** 2))


@cache
def _spelled(number: int) -> str:
    """Spelled at random, so that other words share few n-grams with it."""
    letters = random.Random(number)
    return "".join(letters.choices(string.ascii_lowercase, k=letters.randint(4, 9)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument(
        "--sharing",
        type=SharedBy,
        nargs="+",
        default=[SharedBy.USER, SharedBy.NAMESPACE],
        choices=[SharedBy.USER, SharedBy.NAMESPACE],
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
