"""The tarballs of drawings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models import art
from models.errors import ArtError

SQUARE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" viewBox="0 0 9 9">'
    '<rect width="9" height="9" fill="#ff0000"/></svg>'
)


def test_a_drawing_of_any_size_fills_the_sprite() -> None:
    sprite = art.rasterize(SQUARE)
    assert sprite.shape == (art.SPRITE_SIDE, art.SPRITE_SIDE, 4)
    assert (sprite == [255, 0, 0, 255]).all()


def test_a_damaged_tarball_is_refused(tmp_path: Path) -> None:
    (tmp_path / art.NOTO.tarball).write_bytes(b"not it")
    with pytest.raises(ArtError, match="sha512"):
        art.fetch(art.NOTO, tmp_path)


def test_a_missing_npm_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ArtError, match="npm is not installed") as caught:
        art.fetch(art.FLUENT, tmp_path)
    assert "\n" not in str(caught.value)


def test_tarballs_are_named_as_npm_names_them() -> None:
    assert art.NOTO.tarball == "iconify-json-noto-1.2.9.tgz"
    assert art.FLUENT.tarball == "fluentui-emoji-1.3.0.tgz"
