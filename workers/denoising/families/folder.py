"""A model's folder: what it is, which revision, and what it recommends."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import diffusers

from workers.denoising.errors import UnsupportedModel
from workers.denoising.families.family import ModelSpec

EDGE_BYTES = 2**20  # how much of each end of a file its fingerprint reads
SPEC_FILE = "nirvana.json"  # in the model folder, optional: see read_spec
CALIBRATION_FILE = "thresholds.json"  # in the model folder, optional: see cache.calibration
SPEC_KEYS = (
    "height",
    "width",
    "size_min",
    "size_max",
    "num_inference_steps",
    "guidance_scale",
)


def open_folder(path_or_id: str | Path) -> tuple[Path, str]:
    """A diffusers folder and its pipeline's class, of a folder or a model of the hub.

    The latter is downloaded once. Raises UnsupportedModel.
    """
    folder = Path(path_or_id)
    if not folder.is_dir():
        try:
            folder = Path(diffusers.DiffusionPipeline.download(str(path_or_id)))
        except (OSError, ValueError) as error:  # an unknown id, no network, no id at all
            raise UnsupportedModel(f"no folder and no model of the hub: {path_or_id}") from error
    index = folder / "model_index.json"
    if not index.is_file():
        raise UnsupportedModel(f"{path_or_id} is no diffusers folder: it has no model_index.json")
    return folder, str(_read_json(index).get("_class_name"))


def fingerprint(folder: Path) -> str:
    """Revision of a model folder: SHA-256 over each file's path, size, first and last MiB.

    Notes (`*.md`), hidden files and the calibration, which names the revision itself, do not
    count: editing them must not empty a cache.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        is_note = path.suffix == ".md" or name.as_posix() == CALIBRATION_FILE
        if path.is_file() and not is_note and not is_hidden:
            digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(_edges(path))
    return digest.hexdigest()


def _edges(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(EDGE_BYTES)
        file.seek(max(len(first), path.stat().st_size - EDGE_BYTES))
        return first + file.read()


def read_spec(
    folder: Path, *, unit: int, trained_size: int, num_inference_steps: int, guidance_scale: float
) -> ModelSpec:
    """Defaults and limits: those of the family as given, overridden by `nirvana.json`.

    The file is one JSON object whose keys, all optional, are SPEC_KEYS: pixels, steps, scale.
    Without it: the size the model was trained at, and from half to twice that.
    """
    given = _read_json(folder / SPEC_FILE) if (folder / SPEC_FILE).is_file() else {}
    for key, value in given.items():
        if key not in SPEC_KEYS:
            raise UnsupportedModel(f"{SPEC_FILE} has {key!r}; allowed: {', '.join(SPEC_KEYS)}")
        if type(value) is not int and not (key == "guidance_scale" and type(value) is float):
            raise UnsupportedModel(f"{SPEC_FILE}: {key} is {value!r}, not a number")
    spec = ModelSpec(
        unit=unit,
        height=given.get("height", trained_size),
        width=given.get("width", trained_size),
        size_min=given.get("size_min", trained_size // 2),
        size_max=given.get("size_max", trained_size * 2),
        num_inference_steps=given.get("num_inference_steps", num_inference_steps),
        guidance_scale=given.get("guidance_scale", guidance_scale),
    )
    for side in (spec.height, spec.width):
        if side % spec.unit or not spec.size_min <= side <= spec.size_max:
            raise UnsupportedModel(f"{SPEC_FILE}: a side of {side} pixels breaks its own limits")
    return spec


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UnsupportedModel(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} is no JSON object")
    return content
