"""Real models in the pool that the settings make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_pipeline import build_tiny_pipeline
from workers.denoising.errors import DenoisingError, UnsupportedModel
from workers.denoising.modules import modules_of
from workers.loading import describe_model, load_family, open_pool
from workers.settings import WorkerSettings


def test_a_model_that_made_room_takes_none_though_a_job_that_had_it_is_still_at_work(
    tmp_path: Path,
) -> None:
    """A job keeps hold of its model while it stores its image, which can take minutes."""
    settings = WorkerSettings(
        model="first",
        model_path=str(build_tiny_pipeline(tmp_path / "first", seed=0)),
        models={"second": str(build_tiny_pipeline(tmp_path / "second", seed=1))},
        models_memory_bytes=1,  # room for one at a time
        device="cpu",
    )
    pool = open_pool(settings)
    with pool.lease("first") as first:
        pass
    with pool.lease("second") as second:
        assert pool.loaded == ["second"]
        weights = {
            family: [weight for _, part in modules_of(family) for weight in part.parameters()]
            for family in (first, second)
        }
    assert all(weight.is_meta for weight in weights[first])
    assert not any(weight.is_meta for weight in weights[second])
    with pool.lease("first") as again:
        assert again is not first
        assert again.embedding(["a cat"]).shape == (1, again.embedder.dim)


def settings_of(folder: Path) -> WorkerSettings:
    return WorkerSettings(model="broken", model_path=str(folder), device="cpu")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_were_cut_off_are_an_error_that_fails_the_job(
    tmp_path: Path, part: str
) -> None:
    """Another kind of error would end its attempt only: each attempt loads the model anew."""
    folder = build_tiny_pipeline(tmp_path / "model")
    weights = folder / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_family(settings_of(folder), "broken")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "sample_size", None),
        ("vae/config.json", "block_out_channels", None),
        ("scheduler/scheduler_config.json", "_class_name", None),
        ("scheduler/scheduler_config.json", "beta_schedule", "unheard of"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused_at_start(
    tmp_path: Path, file: str, key: str, value: str | None
) -> None:
    folder = build_tiny_pipeline(tmp_path / "model")
    config = json.loads((folder / file).read_text())
    config.pop(key)
    if value is not None:
        config[key] = value
    (folder / file).write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=value or key):
        describe_model(settings_of(folder), "broken", str(folder))
    if value is not None or "scheduler" not in file:  # diffusers knows the class from its index
        with pytest.raises(DenoisingError):
            load_family(settings_of(folder), "broken")
