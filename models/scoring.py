"""Measure generated pictures: CLIPScore by the model's own CLIP, and an independent judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.dataset import VALUES, to_images
from models.judge_net import JUDGED, JudgeNet
from models.libraries import transformers
from models.networks import MAX_TOKENS
from models.rendering import SIDE
from models.scenes import Scene

CLIP = Path(__file__).parent / "small" / "clip"
JUDGE = Path(__file__).parent / "judge"

Pictures = Tensor | Sequence[Image.Image]


class ClipScorer:
    """The model's CLIP: unit-length embeddings of 128 numbers, and their cosines.

    Trained on the same drawings as the generator, it flatters it: it accepts blobs of the right
    colour. Use it for the order of things, and the judge for whether a picture is right.
    """

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        self._clip, self._tokenizer = clip.eval(), tokenizer

    @classmethod
    def load(cls, folder: Path = CLIP) -> ClipScorer:
        """Load from a folder with the towers and the tokenizer, offline."""
        clip = transformers().CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        return cls(
            clip, transformers().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        )

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, 128) of length 1; cosines of these are the similarity of prompts."""
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        out = self._clip.get_text_features(input_ids=tokens.input_ids)
        return functional.normalize(out if isinstance(out, Tensor) else out.pooler_output, dim=-1)

    @torch.no_grad()
    def embed_images(self, images: Pictures) -> Tensor:
        """Return (B, 128) of length 1."""
        out = self._clip.get_image_features(pixel_values=as_images(images))
        return functional.normalize(out if isinstance(out, Tensor) else out.pooler_output, dim=-1)

    def score(self, images: Pictures, prompts: Sequence[str]) -> Tensor:
        """Return (B,): each picture's cosine with its own prompt, -1..1."""
        return (self.embed_images(images) * self.embed_texts(prompts)).sum(-1)


class Judge:
    """A classifier of subject, background, position and size, trained on other pictures."""

    def __init__(self, net: JudgeNet) -> None:
        self._net = net.eval()

    @classmethod
    def load(cls, folder: Path = JUDGE) -> Judge:
        """Load from a folder with `config.json` and `model.safetensors`."""
        from safetensors.torch import load_file

        net = JudgeNet(json.loads((folder / "config.json").read_text())["channels"])
        weights = load_file(folder / "model.safetensors")
        net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return cls(net)

    @torch.no_grad()
    def attributes(self, images: Pictures) -> list[dict[str, str]]:
        """Name what each picture shows: `{"subject": "banana", "background": "red", ...}`."""
        batch = as_images(images)
        logits = [self._net(part) for part in torch.split(batch, 128)]
        columns = {
            name: torch.cat([part[name] for part in logits]).argmax(-1).tolist() for name in JUDGED
        }
        return [
            {name: VALUES[name][columns[name][row]] for name in JUDGED} for row in range(len(batch))
        ]

    def accuracy(self, images: Pictures, scenes: Sequence[Scene]) -> dict[str, list[bool]]:
        """Tell, by attribute, which pictures show what their scene says."""
        seen = self.attributes(images)
        return {
            name: [s[name] == getattr(scene, name) for s, scene in zip(seen, scenes, strict=True)]
            for name in JUDGED
        }


def as_images(images: Pictures) -> Tensor:
    """Return (B, 3, 64, 64) in -1..1 from such a tensor or from PIL images of any size."""
    if isinstance(images, Tensor):
        return images.float()
    small = [image.convert("RGB").resize((SIDE, SIDE)) for image in images]
    return to_images(np.stack([np.asarray(image, dtype=np.uint8) for image in small]))
