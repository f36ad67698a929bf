"""What a picture shows, and the captions that say so.

A scene is five attributes. A caption is a template with clauses dropped at random, so that
prompts have the similarity structure of real ones: users change one word at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

# fmt: off
SUBJECTS = (
    "red-apple", "tangerine", "lemon", "banana", "watermelon", "grapes", "strawberry", "pineapple",
    "carrot", "mushroom", "pizza", "hamburger", "doughnut", "birthday-cake", "dog-face", "cat-face",
    "rabbit-face", "fox", "panda", "tiger-face", "pig-face", "frog", "chicken", "penguin", "owl",
    "unicorn", "butterfly", "turtle", "tropical-fish", "dolphin", "elephant", "tulip", "sunflower",
    "cactus", "evergreen-tree", "palm-tree", "automobile", "taxi", "bus", "airplane", "rocket",
    "sailboat", "house", "castle", "soccer-ball", "basketball", "balloon", "crown", "umbrella",
    "guitar", "light-bulb", "alarm-clock", "gem-stone", "red-heart", "star", "snowman", "sun",
    "robot", "ghost", "key",
)
# fmt: on
SPOKEN = {
    "automobile": "car",
    "evergreen-tree": "pine tree",
    "hamburger": "burger",
}  # where the emoji's name is not what people type

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (250, 215, 70),
    "green": (80, 175, 80),
    "blue": (60, 110, 215),
    "purple": (140, 80, 190),
    "pink": (250, 160, 195),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
    "gray": (140, 140, 145),
}  # RGB of plain backgrounds
LANDSCAPES = {
    "on green grass": ((120, 190, 245), (200, 230, 255), (90, 170, 70)),
    "on a sandy beach": ((90, 190, 235), (150, 220, 235), (235, 210, 150)),
    "in the snow": ((170, 195, 220), (215, 228, 240), (248, 250, 255)),
    "in the desert at sunset": ((235, 110, 70), (250, 190, 100), (190, 120, 60)),
    "on a road at night": ((15, 18, 50), (45, 45, 95), (60, 60, 66)),
    "on the sea": ((150, 205, 240), (215, 235, 250), (25, 95, 165)),
}  # RGB of the sky's top, the horizon and the ground
BACKGROUNDS = (*COLOURS, *LANDSCAPES)
POSITIONS = {
    "in the center": (0, 0),
    "on the left": (-16, 0),
    "on the right": (16, 0),
    "at the top": (0, -16),
    "at the bottom": (0, 16),
}  # offset of the subject's centre from the picture's, in pixels of 64
SIZES = {"small": 28, "medium": 36, "large": 48}  # side of the subject's box, in pixels of 64
STYLES = ("glossy", "flat")

CENTER_SHARE = 0.36  # people who name no place mostly get the middle
HELD_OUT_SHARE = 10  # one subject x background pair in ten


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One subject before one background."""

    subject: str  # of SUBJECTS
    style: str  # of STYLES; which of the two icon sets draws the subject
    size: str  # of SIZES
    background: str  # of BACKGROUNDS
    position: str  # of POSITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A text and the attributes that it names; `None` is a clause that was dropped."""

    text: str
    subject: str
    style: str | None = None
    size: str | None = None
    background: str | None = None
    position: str | None = None

    def describes(self, scene: Scene) -> bool:
        """Whether nothing the caption says is false of the scene."""
        return self.subject == scene.subject and all(
            said is None or said == shown
            for said, shown in (
                (self.style, scene.style),
                (self.size, scene.size),
                (self.background, scene.background),
                (self.position, scene.position),
            )
        )


def is_held_out(subject: str, background: str) -> bool:
    """Whether the pair is kept from every training stage of the generator."""
    digest = hashlib.sha256(f"{subject}|{background}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def draw_scene(rng: np.random.Generator, *, with_held_out: bool = False) -> Scene:
    """Draw the five attributes independently, held-out pairs only where asked for."""
    while True:
        subject, background = str(rng.choice(SUBJECTS)), str(rng.choice(BACKGROUNDS))
        if with_held_out or not is_held_out(subject, background):
            break
    position = "in the center" if rng.random() < CENTER_SHARE else str(rng.choice([*POSITIONS][1:]))
    return Scene(
        subject=subject,
        style=str(rng.choice(STYLES)),
        size=str(rng.choice([*SIZES])),
        background=background,
        position=position,
    )


def subject_words(subject: str) -> str:
    """Say a subject as a prompt would."""
    return SPOKEN.get(subject, subject.removesuffix("-face").replace("-", " "))


def background_words(background: str, rng: np.random.Generator | None = None) -> str:
    """Say a background; plain colours have three phrasings, the first without `rng`."""
    if background in LANDSCAPES:
        return background
    plain = with_article(f"{background} background")
    phrases = (f"on {plain}", f"with {plain}", f"on {background}")
    return phrases[0 if rng is None else int(rng.integers(3))]


def draw_caption(scene: Scene, rng: np.random.Generator, *, full_share: float = 0.0) -> Caption:
    """Name the subject always and every other attribute at its own rate.

    `full_share` of the captions name everything: what they leave out is a detail that a denoiser
    can only guess, which slows its learning down.
    """
    is_full = rng.random() < full_share
    medium = scene.size == "medium"
    centered = scene.position == "in the center"
    size = scene.size if is_full or rng.random() < (0.5 if medium else 0.8) else None
    style = scene.style if is_full or rng.random() < 0.6 else None
    background = scene.background if is_full or rng.random() < 0.93 else None
    position = scene.position if is_full or rng.random() < (0.6 if centered else 0.9) else None
    noun = " ".join(word for word in (size, style, subject_words(scene.subject)) if word)
    frames = ("{}", "{}", "{}", "{} emoji", "{} icon", "a picture of {}")
    text = frames[int(rng.integers(len(frames)))].format(with_article(noun))
    if background:
        text += " " + background_words(background, rng)
    if position:
        text += (" " if rng.random() < 0.5 else ", ") + position
    return Caption(
        text=text,
        subject=scene.subject,
        style=style,
        size=size,
        background=background,
        position=position,
    )


def full_caption(scene: Scene) -> str:
    """Name everything, in the most frequent phrasing: the evaluation's prompt for a scene."""
    noun = f"{scene.size} {scene.style} {subject_words(scene.subject)}"
    return f"{with_article(noun)} {background_words(scene.background)}, {scene.position}"


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun phrase."""
    is_open = noun[0] in "aeiou" and not noun.startswith("unicorn")
    return ("an " if is_open else "a ") + noun
