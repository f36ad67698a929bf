"""Fetch the emoji art from npm and draw it as sprites.

The tarballs are pinned by version and sha512; nothing else is read from them than the drawings.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.errors import ArtError
from models.rendering import Pixels
from models.scenes import SUBJECTS

SPRITE_SIDE = 128  # pixels; more than any box, so that sprites are only ever made smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One npm tarball of drawings."""

    name: str
    version: str
    licence: str  # SPDX
    sha512: str

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NOTO = Package(
    name="@iconify-json/noto",
    version="1.2.9",
    licence="Apache-2.0",
    sha512="0d08ae5c435bba7e35721f973d2579e47f456962a91d3cb3e3a6082ad49a2980"
    "f87c80c3ccbd6d47a1f89e9fd3dfc8dfad301e237adc285d26a8761e65502e6b",
)
FLUENT_FLAT = Package(
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    licence="MIT",
    sha512="458e3b4603dbe3b7d8522cab03ae2c20e2f4f94534dacdbdb17a4d05b2104415"
    "253e57cd1532949990c4446bb10ecffbc8d196a9062fb9a4983353387d15e553",
)
FLUENT = Package(
    name="fluentui-emoji",
    version="1.3.0",
    licence="MIT",
    sha512="2535d7c2a2227b6ad64e03a42090c9c6bd16b704f3d9653891d3aaf1bb8b5538"
    "58c10dbae1a151da3753caea27da811b2eaa86313eb8cc8e1bb729f5b1a076c7",
)
PACKAGES = (NOTO, FLUENT_FLAT, FLUENT)
ICON_SETS = {"glossy": NOTO, "flat": FLUENT_FLAT}  # the generator's two styles
JUDGE_DESIGNS = ("modern", "high-contrast")  # folders of FLUENT, never seen by the generator


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's verified tarball, asking npm for it only where `folder` lacks it."""
    path = folder / package.tarball
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise ArtError(f"npm is not installed and {path} does not exist")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ArtError(f"npm pack {package.name}: {done.stderr.strip()[-200:]}")
    if hashlib.sha512(path.read_bytes()).hexdigest() != package.sha512:
        raise ArtError(f"{path} is not {package.name} {package.version}: its sha512 differs")
    return path


def draw_sprites(folder: Path) -> dict[str, Pixels]:
    """Draw every subject in every design: `{design/subject: (128, 128, 4) RGBA}`."""
    sprites = {}
    for design, package in ICON_SETS.items():
        for subject, svg in _iconify_drawings(fetch(package, folder)):
            sprites[f"{design}/{subject}"] = rasterize(svg)
    for design, subject, svg in _fluent_drawings(fetch(FLUENT, folder)):
        sprites[f"{design}/{subject}"] = rasterize(svg)
    return sprites


def rasterize(svg: str) -> Pixels:
    """Render an SVG of any size at (128, 128, 4)."""
    import resvg_py

    # resvg scales by the root's own size where it has one; ours is set instead.
    root = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg, count=1)
    root = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", root, count=1)
    root = root.replace("<svg", f'<svg width="{SPRITE_SIDE}" height="{SPRITE_SIDE}"', 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=root, width=SPRITE_SIDE, height=SPRITE_SIDE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return np.asarray(image.resize((SPRITE_SIDE, SPRITE_SIDE)), dtype=np.uint8)


def _iconify_drawings(tarball: Path) -> Iterator[tuple[str, str]]:
    """Yield (subject, svg) of an Iconify collection; a missing subject is an error."""
    with tarfile.open(tarball) as archive:
        icons: dict[str, Any] = json.loads(_read(archive, "package/icons.json"))
    for subject in SUBJECTS:
        name = icons.get("aliases", {}).get(subject, {}).get("parent", subject)
        icon = icons["icons"].get(name)
        if icon is None:
            raise ArtError(f"{tarball.name} has no {subject}")
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        yield (
            subject,
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>',
        )


def _fluent_drawings(tarball: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (design, subject, svg) of the designs that only the judge sees."""
    with tarfile.open(tarball) as archive:
        for design in JUDGE_DESIGNS:
            for subject in SUBJECTS:
                yield design, subject, _read(archive, f"package/icons/{design}/{subject}.svg")


def _read(archive: tarfile.TarFile, member: str) -> str:
    file = archive.extractfile(member)
    if file is None:
        raise ArtError(f"{archive.name!r} has no {member}")
    return file.read().decode()
