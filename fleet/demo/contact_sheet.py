"""A contact sheet: each hit beside the image its state came from, and the same job uncached."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

_TILE: Final = 128  # pixels: side of one image
_GAP: Final = 8
_LABEL_HEIGHT: Final = 16
_PROMPT_HEIGHT: Final = 48
_MARGIN: Final = 24
_TITLE_HEIGHT: Final = 88
_CARD_WIDTH: Final = 3 * _TILE + 2 * _GAP
_CARD_HEIGHT: Final = _PROMPT_HEIGHT + _LABEL_HEIGHT + _TILE
_CARDS_PER_ROW: Final = 3
_TITLE_CHARACTERS: Final = 110  # a line

_INK, _QUIET, _ACCENT, _PAPER = "#1b1f24", "#6b7280", "#0b6e4f", "#ffffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One hit."""

    prompt: str
    source_prompt: str
    k: int  #: steps skipped
    steps_asked: int
    similarity: float
    source_png: bytes  #: what the state's own job drew
    reused_png: bytes  #: what came of the hit
    uncached_png: bytes  #: the same job from noise


def write_contact_sheet(path: Path, *, title: str, cards: Sequence[Card]) -> None:
    """Draw the cards, three a row, under a title; the folder must exist."""
    num_rows = max(1, -(-len(cards) // _CARDS_PER_ROW))
    width = 2 * _MARGIN + _CARDS_PER_ROW * _CARD_WIDTH + (_CARDS_PER_ROW - 1) * _MARGIN
    height = _TITLE_HEIGHT + num_rows * (_CARD_HEIGHT + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lines = "\n".join(textwrap.wrap(title, _TITLE_CHARACTERS))
    draw.text((_MARGIN, _MARGIN), lines, fill=_INK, font=ImageFont.load_default(20))
    for number, card in enumerate(cards):
        row, column = divmod(number, _CARDS_PER_ROW)
        left = _MARGIN + column * (_CARD_WIDTH + _MARGIN)
        top = _TITLE_HEIGHT + _GAP + row * (_CARD_HEIGHT + _MARGIN)
        _draw_card(sheet, draw, card, left, top)
    sheet.save(path)


def _draw_card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, left: int, top: int
) -> None:
    _draw_prompts(draw, card, left, top)
    tiles = (
        ("its source", card.source_png, _QUIET),
        (f"{card.k} of {card.steps_asked} skipped", card.reused_png, _ACCENT),
        ("uncached", card.uncached_png, _QUIET),
    )
    font = ImageFont.load_default(10)
    for number, (label, png, color) in enumerate(tiles):
        x = left + number * (_TILE + _GAP)
        draw.text((x, top + _PROMPT_HEIGHT), label, fill=color, font=font)
        sheet.paste(_tile(png), (x, top + _PROMPT_HEIGHT + _LABEL_HEIGHT))


def _draw_prompts(draw: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    prompt = textwrap.shorten(card.prompt, 62, placeholder="...")
    source = textwrap.shorten(card.source_prompt, 58, placeholder="...")
    draw.text((left, top), prompt, fill=_INK, font=ImageFont.load_default(13))
    origin = f"from: {source} (similarity {card.similarity:.2f})"
    draw.text((left, top + 20), origin, fill=_QUIET, font=ImageFont.load_default(11))


def _tile(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return image.resize((_TILE, _TILE), Image.Resampling.BICUBIC)
