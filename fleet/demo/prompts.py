"""The demo's prompts: a few people at work on a picture, each changing a word or two at a time.

Written for the vocabulary of the model that ships with the project. In the real logs nearly all
close reuse is somebody iterating on their own prompt, so that is what these sessions do.
"""

from __future__ import annotations

from typing import Final

SESSIONS: Final[dict[str, tuple[str, ...]]] = {
    # A greengrocer's stickers.
    "mira": (
        "a red apple on a blue background",
        "a large red apple on a blue background",
        "a large glossy red apple on a blue background",
        "a large glossy red apple on a blue background, in the center",
        "a large glossy red apple on green grass, in the center",
        "a large glossy strawberry on green grass, in the center",
        "a large glossy strawberry on a sandy beach",
    ),
    # A children's book about a penguin, and then about something that flies.
    "tomas": (
        "a penguin in the snow",
        "a large penguin in the snow",
        "a large flat penguin in the snow",
        "a large flat penguin in the snow, on the left",
        "a large flat snowman in the snow, on the left",
        "a large flat snowman in the snow",
        "a rocket on a black background",
        "a glossy rocket on a black background",
    ),
    # Icons for a travel agency.
    "ines": (
        "a sailboat on the sea",
        "a small sailboat on the sea",
        "a small sailboat on the sea, on the right",
        "an airplane on a blue background",
        "a large airplane on a blue background",
        "a large flat airplane on a blue background",
        "a palm tree on a sandy beach",
        "a large palm tree on a sandy beach",
    ),
    # Somebody who likes hearts, and asks for the same one twice.
    "wen": (
        "a red heart on a pink background",
        "a large red heart on a pink background",
        "a large red heart on a pink background",
        "a large red heart on a white background",
        "a large flat red heart on a white background",
        "a star on a black background, at the top",
        "a large star on a black background, at the top",
    ),
    # A bus company, in all weathers.
    "ola": (
        "a bus in the snow",
        "a glossy bus in the snow",
        "a large glossy bus in the snow",
        "a large glossy bus on a road at night",
        "a large glossy taxi on a road at night",
        "a large taxi on a road at night",
        "a large taxi in the desert at sunset",
    ),
    # A zoo's signs.
    "kofi": (
        "a frog on a yellow background",
        "a large frog on a yellow background",
        "a large frog on an orange background",
        "a large panda on an orange background",
        "a large panda on a purple background",
        "a large glossy panda on a purple background",
        "a large glossy owl on a purple background",
    ),
}
