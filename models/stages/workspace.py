"""Where a run keeps its files, and what a stage may take from the stages before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config import TrainConfig
from models.dataset import SceneDataset
from models.errors import StageError
from models.libraries import transformers
from models.rendering import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """One run: its configuration, its folder, and optionally a model to start from."""

    config: TrainConfig
    folder: Path
    art_folder: Path  # npm tarballs, fetched where absent
    init_from: Path | None = None  # a folder shaped like models/small
    is_compiled: bool = (
        False  # torch.compile for the denoiser: a sixth faster, needs a C++ compiler
    )

    @property
    def sprites_path(self) -> Path:
        """`{design/subject: RGBA}`."""
        return self.folder / "sprites.npz"

    @property
    def tokenizer_folder(self) -> Path:
        """The trained vocabulary, as transformers saves it."""
        return self.folder / "tokenizer"

    @property
    def latents_path(self) -> Path:
        """(N, 4, 16, 16) float16: the pictures' mean latents, scaled to unit variance."""
        return self.folder / "latents.npy"

    def checkpoint(self, stage: str) -> Path:
        """The stage's only checkpoint."""
        return self.folder / "checkpoints" / f"{stage}.pt"

    def require(self, path: Path, stage: str) -> Path:
        """Return `path`, or say which stage makes it."""
        if not path.exists():
            raise StageError(f"{path} is missing: run `--stage {stage}` first")
        return path

    def sprites(self) -> dict[str, Pixels]:
        """Load the drawings."""
        with np.load(self.require(self.sprites_path, "data")) as file:
            return dict(file)

    def scenes(self, name: str = "generator") -> SceneDataset:
        """Open a data set: "generator" or "judge"."""
        folder = self.folder / "scenes" / name
        self.require(folder / "pixels.npy", "data")
        return SceneDataset(folder)

    def tokenizer(self) -> Any:
        """Load the tokenizer."""
        folder = self.require(self.tokenizer_folder, "tokenizer")
        return transformers().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
