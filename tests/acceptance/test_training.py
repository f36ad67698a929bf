"""Training from nothing runs through every stage on one core, and its model draws pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import art, sampling, train
from models.scoring import ClipScorer, Judge
from tests.unit.models.drawings import drawn_sprites

PROMPT = "a large flat banana on a red background, on the left"


@pytest.mark.timeout(60)
def test_training_from_nothing_ends_in_a_pipeline_and_a_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(art, "draw_sprites", lambda _: drawn_sprites())
    train.main(["--smoke", "--stage", "all", "--work-dir", str(tmp_path)])

    pipeline = sampling.load_pipeline(tmp_path / "model")
    image = pipeline(
        PROMPT,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
    pictures = torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1
    assert ClipScorer.load(tmp_path / "model" / "clip").score(pictures, [PROMPT]).abs() <= 1
    assert Judge.load(tmp_path / "judge").attributes(pictures)[0].keys() >= {"subject", "size"}


@pytest.mark.timeout(60)
def test_a_finished_model_can_be_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(art, "draw_sprites", lambda _: drawn_sprites())
    first, second = tmp_path / "first", tmp_path / "second"
    train.main(["--smoke", "--work-dir", str(first)])
    train.main(["--smoke", "--work-dir", str(second), "--init-from", str(first / "model")])

    before, after = (sampling.load_pipeline(folder / "model").vae for folder in (first, second))
    # The encoder is kept, so that latents and stored states keep their meaning.
    assert torch.equal(before.encoder.conv_in.weight, after.encoder.conv_in.weight)
    assert before.config.scaling_factor == after.config.scaling_factor
    assert not torch.equal(before.decoder.conv_out.weight, after.decoder.conv_out.weight)


@pytest.mark.timeout(60)
def test_the_denoiser_alone_can_be_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(art, "draw_sprites", lambda _: drawn_sprites())
    first, second = tmp_path / "first", tmp_path / "second"
    train.main(["--smoke", "--work-dir", str(first)])
    for stage in ("data", "tokenizer", "vae", "unet", "assemble"):
        start = ["--init-from", str(first / "model")]
        train.main(["--smoke", "--stage", stage, "--work-dir", str(second), *start])

    for name in ("model.safetensors", "config.json"):
        clips = [folder / "model" / "clip" / name for folder in (first, second)]
        assert clips[0].read_bytes() == clips[1].read_bytes()
    unets = [sampling.load_pipeline(folder / "model").unet for folder in (first, second)]
    assert not torch.equal(*(unet.conv_out.weight for unet in unets))
    assert not (second / "judge").exists()
