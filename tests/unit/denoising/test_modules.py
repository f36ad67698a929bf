"""How a loaded model lies in memory, and what its folder tells before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch

from tests.unit.denoising.fakes import request_for, run_alone
from workers.denoising.errors import UnsupportedModel, UnsupportedScheduler
from workers.denoising.families import loading
from workers.denoising.families.description import describe, weights_bytes
from workers.denoising.families.family import Family
from workers.denoising.modules import arrange, memory_bytes


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A model folder that the test may change."""
    return Path(shutil.copytree(folders["ddim"], tmp_path / "model"))


def test_channels_last_changes_the_layout_and_not_the_image(
    family: Family, folders: dict[str, Path]
) -> None:
    arranged: Any = loading.load(folders["ddim"])
    arrange(arranged, channels_last=True)
    assert arranged.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    request = request_for(family.encode(["a cat"], [""])[0], guidance_scale=4.0)
    torch.testing.assert_close(
        run_alone(arranged, request), run_alone(family, request), atol=1e-4, rtol=0
    )


def test_only_the_denoiser_is_compiled(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    family: Any = loading.load(folders["ddim"])
    arrange(family, compiled=True)
    assert compiled == [family.unet]


def test_a_models_memory_is_its_weights_about_the_size_of_its_files(
    family: Family, folders: dict[str, Path]
) -> None:
    assert 0.9 < memory_bytes(family) / weights_bytes(folders["ddim"]) < 1.1
    shared = torch.nn.Linear(4, 4, bias=False)

    class Twice:
        first, second = shared, shared

    twice = Twice()
    twice.__dict__.update(first=shared, second=shared)
    assert memory_bytes(cast("Any", twice)) == 4 * 4 * 4


def test_a_model_of_the_hub_takes_as_much_as_its_downloaded_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be read into memory that another model has."""

    def download(model_id: str) -> str:
        assert model_id == "somebody/model"
        return str(folders["ddim"])

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert weights_bytes("somebody/model") == weights_bytes(folders["ddim"]) > 0


def test_a_folder_tells_what_the_loaded_model_would(
    family: Family, folders: dict[str, Path]
) -> None:
    assert describe(folders["ddim"]) == family.spec


@pytest.mark.parametrize("name", ["PNDMScheduler", "NoSuchScheduler"])
def test_a_scheduler_that_is_not_supported_is_refused_without_loading(
    copy: Path, name: str
) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))
    with pytest.raises(UnsupportedScheduler, match=name):
        describe(copy)


def test_a_folder_without_a_part_is_refused_without_loading(copy: Path) -> None:
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match="vae"):
        describe(copy)
