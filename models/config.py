"""The one configuration of a training run, read from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How many pictures are drawn once and then trained on."""

    num_scenes: int  # the generator's
    num_judge_scenes: int  # the judge's own renderings
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Widths of the networks; the shipped model's are the defaults."""

    vae_channels: tuple[int, ...] = (24, 48, 96)
    unet_channels: tuple[int, ...] = (48, 96, 128)
    text_width: int = 128
    num_text_layers: int = 3
    judge_channels: tuple[int, ...] = (32, 64, 128, 192)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage's optimisation: AdamW, warm-up, a plateau, a cosine decay to nothing."""

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    decay_start: float = 0.5  # share of the steps after which the learning rate falls
    weight_decay: float = 0.01
    average_decay: float = 0.999  # of the exponential moving average of the weights
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that a run depends on besides the art."""

    data: DataConfig
    networks: NetworkConfig
    clip: StageConfig
    vae: StageConfig  # encoder and decoder together, on crops
    decoder: StageConfig  # the decoder alone, on whole pictures, beside fixed latents
    unet: StageConfig
    judge: StageConfig


def load(path: Path) -> TrainConfig:
    """Read a configuration; an unknown or missing key is an error."""
    tables = tomllib.loads(path.read_text())
    networks: dict[str, Any] = tables.pop("networks", {})
    stages = {name: StageConfig(**tables.pop(name)) for name in STAGES}
    data = DataConfig(**tables.pop("data"))
    if tables:
        raise ValueError(f"{path}: unknown tables {sorted(tables)}")
    lists: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in networks.items()
    }
    return TrainConfig(data=data, networks=NetworkConfig(**lists), **stages)


STAGES = ("clip", "vae", "decoder", "unet", "judge")
