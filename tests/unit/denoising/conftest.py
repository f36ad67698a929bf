# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.tiny_pipeline import BETAS, build_tiny_pipeline
from tests.unit.denoising.fakes import FakeDenoiser
from tests.unit.denoising.pairs import FAMILIES, TinyModel, load_tiny_model
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Family

# diffusers' Euler and Heun schedulers convert tensors in a way that numpy is phasing out.
DIFFUSERS_WARNING = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(DIFFUSERS_WARNING))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny model with each scheduler."""
    schedulers: dict[str, Any] = {
        "ddim": None,
        "euler": diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
    }
    root = tmp_path_factory.mktemp("tiny")
    return {
        name: build_tiny_pipeline(root / name, scheduler=scheduler)
        for name, scheduler in schedulers.items()
    }


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """A tiny model of each family."""
    root = tmp_path_factory.mktemp("families")
    return {name: load_tiny_model(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="session")
def families(folders: dict[str, Path]) -> dict[str, Family]:
    return {name: loading.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def family(families: dict[str, Family]) -> Family:
    return families["ddim"]


@pytest.fixture
def fake(family: Family) -> FakeDenoiser:
    return FakeDenoiser(family)


@pytest.fixture
def engine(fake: FakeDenoiser) -> Iterator[Engine]:
    with Engine(fake.as_family(), batch_size_max=8) as engine:
        yield engine
