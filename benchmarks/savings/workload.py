"""A log of jobs for the shipped model, with the structure of a real one.

A prompt is a caption that the model can draw and a tail of words about style, as people write them.
The model reads 32 tokens, so it sees little of a tail, as Stable Diffusion sees 77 tokens of a long
prompt. Users come, send requests in a row, and change each time the share of words that users of
the real log change (habits.json): any word alike, so that a change of few words mostly hits the
tail. A word of the caption is changed by changing what it names.

`python -m benchmarks.savings.workload LOG` prints how far the structure is from a real log's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.savings.habits import POINTS, Habits, Quantiles
from evaluation.structure import EDIT_MAX, PAUSE, structure, words
from evaluation.trace import read_trace
from models.dataset import COLUMNS, VALUES
from models.scenes import Scene, draw_scene, full_caption

# fmt: off
TAIL_WORDS: Final = (
    "abstract", "airy", "amber", "ambient", "ancient", "angular", "antique", "aquatic", "arcane",
    "artistic", "atmospheric", "aura", "autumn", "baroque", "beautiful", "bespoke", "bevelled",
    "blurred", "bokeh", "bold", "bright", "brilliant", "brushed", "bubbly", "calm", "candid",
    "carved", "ceramic", "charming", "cheerful", "chrome", "cinematic", "classic", "clay", "clean",
    "cloudy", "coloured", "comic", "contrast", "cosmic", "cosy", "crafted", "creamy", "crisp",
    "cubist", "curved", "cute", "dappled", "dark", "dazzling", "decorative", "deep", "delicate",
    "dense", "detailed", "digital", "dim", "dotted", "dramatic", "drawn", "dreamy", "dusty",
    "dynamic", "earthy", "eerie", "elaborate", "elegant", "embossed", "enamel", "engraved", "epic",
    "ethereal", "exquisite", "faded", "fancy", "fantasy", "festive", "film", "fine", "flowing",
    "focus", "foggy", "folk", "fractal", "fresh", "frosted", "fuzzy", "gentle", "geometric",
    "gilded", "glassy", "gleaming", "glowing", "golden", "gothic", "grainy", "graphic", "handmade",
    "harmony", "hazy", "heroic", "holographic", "iconic", "illustrated", "impressionist", "inked",
    "intricate", "iridescent", "ivory", "jagged", "joyful", "kinetic", "kitsch", "lacquered",
    "layered", "leafy", "lively", "lofty", "lomography", "luminous", "lush", "macro", "magical",
    "majestic", "marbled", "masterpiece", "matte", "melancholy", "mellow", "metallic",
    "microscopic", "minimal", "misty", "modern", "moody", "mosaic", "muted", "mystic", "natural",
    "neat", "neon", "noble", "noir", "nostalgic", "octane", "opal", "optical", "organic", "ornate",
    "painterly", "papery", "pastel", "patterned", "pearly", "photographic", "pixelated", "playful",
    "poetic", "polished", "porcelain", "portrait", "poster", "precise", "pristine", "quaint",
    "quilted", "quirky", "radiant", "realistic", "refined", "reflective", "regal", "rendered",
    "retro", "rich", "rippled", "risograph", "romantic", "rough", "rustic", "sculpted", "sepia",
    "serene", "shaded", "sharp", "shimmering", "silky", "silver", "simple", "sketch", "sleek",
    "smooth", "soft", "solemn", "sparkling", "spectral", "sponged", "stained", "stencilled",
    "stylish", "sublime", "subtle", "surreal", "symbolic", "symmetrical", "textured", "tidy",
    "timeless", "tinted", "tonal", "torn", "tranquil", "translucent", "trending", "tribal",
    "twilight", "ultra", "unreal", "varnished", "velvet", "vibrant", "vintage", "vivid",
    "volumetric", "warm", "washed", "watercolour", "wavy", "weathered", "whimsical", "wild",
    "winter", "wispy", "woodcut", "woven", "zen",
)
# fmt: on
NUM_JOBS: Final = 2_000
SEED: Final = 2  # the first one whose four distances from the log are all under 0.05
TRIES: Final = 8
WARM_UP: Final = 200  # rows before the first one, which are left out
LEAP: Final = 0.95  # of the words changed: another prompt altogether


@dataclass(frozen=True, slots=True, kw_only=True)
class Idea:
    """What a user asks for."""

    scene: Scene
    tail: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """As it is sent."""
        return ", ".join([full_caption(self.scene), *self.tail])


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A row of the log."""

    user: str
    prompt: str
    scene: Scene  #: that the picture should show
    seed: int


@dataclass
class _Session:
    user: int
    num_left: int  #: requests
    due: int  #: row of the next one
    gap: int = 0  #: rows from the last one to it
    is_first: bool = True


class _Users:
    """Who sends a request at which row."""

    def __init__(self, habits: Habits, rng: np.random.Generator) -> None:
        self._habits, self._rng = habits, rng
        self._sessions: list[_Session] = []
        self._last_row: list[int] = []  # by user

    def send(self, row: int) -> tuple[int, bool]:
        """The user of a row, and whether a session begins with it."""
        due = [session for session in self._sessions if session.due <= row]
        # Of those who would send now, who waits for the shortest time shows a delay the most.
        session = min(due, key=lambda one: one.gap) if due else self._begin(row)
        self._last_row[session.user] = row
        is_first, session.is_first = session.is_first, False
        session.num_left -= 1
        if session.num_left:
            session.gap = int(_draw(self._habits.gap, self._rng))
            session.due = row + session.gap
        else:
            self._sessions.remove(session)
        return session.user, is_first

    def _begin(self, row: int) -> _Session:
        busy = {session.user for session in self._sessions}
        away = [
            user
            for user, last in enumerate(self._last_row)
            if user not in busy and row - last > PAUSE
        ]
        if away and self._rng.random() < self._habits.return_share:
            user = int(self._rng.choice(away))
        else:
            user = len(self._last_row)
            self._last_row.append(row)
        length = int(_draw(self._habits.in_a_row, self._rng))
        session = _Session(user=user, num_left=length, due=row)
        self._sessions.append(session)
        return session


class _Ideas:
    """What one user asks for, one prompt after the other."""

    def __init__(self, habits: Habits, rng: np.random.Generator) -> None:
        self._habits, self._rng = habits, rng
        self._earlier: list[Idea] = []

    def next(self, *, is_first_of_session: bool) -> Idea:
        """Change the idea before, go back to an older one, or have a new one."""
        habits = self._habits
        if not self._earlier:
            idea = self._new(Idea(scene=draw_scene(self._rng)), share=1.0)
        else:
            table = habits.changed_between if is_first_of_session else habits.changed_in_session
            share, base = _draw(table, self._rng), self._earlier[-1]
            if share > EDIT_MAX and self._rng.random() < habits.back_share:
                share, base = self._go_back()
            idea = self._changed(base, share)
        self._earlier.append(idea)
        return idea

    def _go_back(self) -> tuple[float, Idea]:
        base = self._earlier[int(self._rng.integers(len(self._earlier)))]
        if self._rng.random() < self._habits.back_unchanged_share:
            return 0.0, base
        edits = [share for share in self._habits.changed_in_session if 0 < share <= EDIT_MAX]
        return float(self._rng.choice(edits)), base

    def _changed(self, base: Idea, share: float) -> Idea:
        if share == 0:
            return base
        if share >= LEAP:
            return self._new(base, share)
        total = words(base.prompt).total()
        num_changed = max(1, round(share * total))
        in_caption = total - len(base.tail)
        hits = int(self._rng.hypergeometric(in_caption, len(base.tail), num_changed))
        scene = self._other_scene(base.scene, hits, num_common=in_caption - hits)
        return self._with_tail(base, scene, num_kept=total - num_changed, length=total)

    def _new(self, base: Idea, share: float) -> Idea:
        length = int(_draw(self._habits.num_words, self._rng))
        longer = max(length, words(base.prompt).total())
        num_kept = round((1 - share) * longer)
        scene = self._other_scene(base.scene, len(COLUMNS), num_common=num_kept)
        return self._with_tail(base, scene, num_kept=num_kept, length=length)

    def _other_scene(self, scene: Scene, num_changes: int, *, num_common: int) -> Scene:
        """Change attributes; of some tries that which has nearest to `num_common` words in common.

        Attributes are not words: "background" is in most captions.
        """
        old = words(full_caption(scene))
        tries = [self._try_scene(scene, min(num_changes, len(COLUMNS))) for _ in range(TRIES)]
        return min(
            tries, key=lambda one: abs((words(full_caption(one)) & old).total() - num_common)
        )

    def _try_scene(self, scene: Scene, num_changes: int) -> Scene:
        chosen = self._rng.choice(COLUMNS, size=num_changes, replace=False)
        return replace(scene, **{str(column): self._other(scene, str(column)) for column in chosen})

    def _other(self, scene: Scene, column: str) -> str:
        others = [value for value in VALUES[column] if value != getattr(scene, column)]
        return str(self._rng.choice(others))

    def _with_tail(self, base: Idea, scene: Scene, *, num_kept: int, length: int) -> Idea:
        """Keep as many of the tail's words as make `num_kept` in all, and add others."""
        caption = words(full_caption(scene))
        common = (caption & words(full_caption(base.scene))).total()
        num_old = min(len(base.tail), max(0, num_kept - common))
        num_new = max(0, length - caption.total() - num_old)
        keeps = np.sort(self._rng.choice(len(base.tail), size=num_old, replace=False))
        fresh = [word for word in TAIL_WORDS if word not in base.tail]
        added = self._rng.choice(fresh, size=min(num_new, len(fresh)), replace=False)
        kept = [base.tail[int(at)] for at in keeps]
        return Idea(scene=scene, tail=(*kept, *(str(word) for word in added)))


def generate(
    num_jobs: int = NUM_JOBS, *, habits: Habits | None = None, seed: int = SEED
) -> list[Request]:
    """Draw a log. What came before its first row is drawn too, and left out."""
    habits, rng = habits or Habits.read(), np.random.default_rng(seed)
    senders, ideas = _Users(habits, rng), dict[int, _Ideas]()
    requests = []
    for row in range(-WARM_UP, num_jobs):
        user, is_first = senders.send(row)
        thinker = ideas.setdefault(user, _Ideas(habits, rng))
        idea = thinker.next(is_first_of_session=is_first)
        job_seed = int(rng.integers(2**31))
        if row >= 0:
            requests.append(
                Request(user=f"u{user}", prompt=idea.prompt, scene=idea.scene, seed=job_seed)
            )
    return requests


def owners_of(requests: Sequence[Request]) -> NDArray[np.int32]:
    """[n]: users as numbers, in the order of first sight."""
    names = {user: number for number, user in enumerate(dict.fromkeys(r.user for r in requests))}
    return np.array([names[request.user] for request in requests], dtype=np.int32)


def distances(requests: Sequence[Request], log: Path) -> dict[str, float]:
    """Kolmogorov-Smirnov distances of the structure from a log's."""
    own = structure([r.prompt for r in requests], owners_of(requests))
    trace = read_trace(log)
    assert trace.users is not None, f"{log} names no users"
    return own.distances(structure(trace.prompts, trace.users))


def _draw(quantiles: Quantiles, rng: np.random.Generator) -> float:
    """Invert the cumulative distribution: only values of the log come out."""
    at = int(np.searchsorted(POINTS, rng.random()))
    return quantiles[at]


def _lines(requests: Sequence[Request], count: int) -> Iterator[str]:
    for request in requests[:count]:
        yield f"{request.user:>6}  {request.prompt}"


def main(arguments: list[str] | None = None) -> None:
    """Print the distances, and some rows."""
    parser = argparse.ArgumentParser(description="Compare the generated log with a real one.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--jobs", type=int, default=NUM_JOBS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--show", type=int, default=0, help="rows to print")
    options = parser.parse_args(arguments)
    requests = generate(options.jobs, seed=options.seed)
    for line in _lines(requests, options.show):
        print(line)
    found = {name: round(value, 4) for name, value in distances(requests, options.log).items()}
    print(json.dumps({"log": options.log.name, "jobs": len(requests), **found}))


if __name__ == "__main__":
    main()
