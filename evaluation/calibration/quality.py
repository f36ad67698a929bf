"""How good a picture is for its prompt: one interface, so that other measures can be plugged in."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import OptionInvalid, PackageMissing

Picture = NDArray[np.uint8]  # [H, W, 3]


class Quality(Protocol):
    """Scores pictures; more is better, and 0 is the score of a useless one."""

    @property
    def name(self) -> str:
        """Names its column in tables and files."""

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Score each picture for its own prompt, [n]."""


class ClipScore:
    """Cosine of a picture and its prompt by a CLIP (Hessel et al. 2021, without the factor 2.5).

    The paper's measure. A CLIP trained on the generator's own pictures flatters it.
    """

    name = "clip_score"

    def __init__(self, clip: Any, tokenizer: Any, image_processor: Any) -> None:
        self._clip, self._tokenizer = clip.eval(), tokenizer
        self._image_processor = image_processor

    @classmethod
    def load(cls, folder: Path) -> ClipScore:
        """Load a CLIP's folder, offline; raises OptionInvalid where it is none."""
        try:
            transformers = import_module("transformers")
        except ModuleNotFoundError:
            raise PackageMissing("transformers", needed_for="CLIPScore") from None
        if not (folder / "preprocessor_config.json").is_file():
            raise OptionInvalid(f"{folder} is no CLIP folder: it has no preprocessor_config.json")
        parts = [
            part.from_pretrained(folder, local_files_only=True)
            for part in (
                transformers.CLIPModel,
                transformers.AutoTokenizer,
                transformers.CLIPImageProcessor,
            )
        ]
        return cls(*parts)

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Cosines, [n]."""
        torch = import_module("torch")
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self._clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        pixels = self._image_processor(list(pictures), return_tensors="pt").pixel_values
        with torch.inference_mode():
            seen = self._clip.get_image_features(pixels)
            said = self._clip.get_text_features(tokens.input_ids, tokens.attention_mask)
            cosines: NDArray[np.float64] = (
                torch.nn.functional.cosine_similarity(
                    *(getattr(out, "pooler_output", out) for out in (seen, said))
                )
                .double()
                .numpy()
            )
        return cosines
