"""The training loop that every stage shares: resumable at any step, progress with ETA.

All randomness of a step is derived from (seed, step) and, in all but the first of several
processes, from the process's number. So a run that was killed and resumed takes the same steps
as one that was not, with no generator state to save.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import parallel
from models.config import StageConfig

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 90.0
REPORT_EVERY = 100  # steps
GRADIENT_NORM_MAX = 1.0


class Learner(ABC):
    """Networks, their optimizer and their moving averages; a stage adds the loss."""

    def __init__(
        self,
        config: StageConfig,
        networks: dict[str, nn.Module],
        *,
        rate_factors: dict[str, float] | None = None,
    ) -> None:
        """Train the networks by name; `rate_factors` scales the learning rate of some."""
        self.config = config
        self.networks = nn.ModuleDict(networks)
        self.averages = copy.deepcopy(self.networks).eval().requires_grad_(False)
        self._rate_factors = rate_factors or {}
        groups = [
            {
                "params": [p for p in network.parameters() if p.requires_grad],
                "factor": self._rate_factors.get(name, 1.0),
            }
            for name, network in networks.items()
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
        )

    @abstractmethod
    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return one batch's loss, drawing from `rng` and `noise` only."""

    def advance(self, step: int) -> float:
        """Take one optimizer step and return this process's loss."""
        rank = parallel.rank()
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        rng = np.random.default_rng((self.config.seed, step, *([rank] if rank else [])))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss = self.loss(rng, noise)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        parallel.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_MAX)
        self.optimizer.step()
        self._average(step)
        return loss.item()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # The average of few steps forgets its random start at once.
        decay = min(self.config.average_decay, (1 + step) / (10 + step))
        averages: list[Tensor] = [*self.averages.parameters()]
        networks: list[Tensor] = [*self.networks.parameters()]
        torch._foreach_lerp_(averages, networks, 1 - decay)
        for average, buffer in zip(self.averages.buffers(), self.networks.buffers(), strict=True):
            average.copy_(buffer)

    def state(self, step: int) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "step": step,
            "networks": self.networks.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Take up a saved state and return the number of steps already made."""
        self.networks.load_state_dict(state["networks"])
        self.averages.load_state_dict(state["averages"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def learning_rate(config: StageConfig, step: int) -> float:
    """Warm-up, plateau, cosine; tied to steps, so a slow machine gets the same schedule."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    share = step / config.num_steps
    fallen = max(0.0, (share - config.decay_start) / (1 - config.decay_start))
    return config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, fallen)))


def run(learner: Learner, checkpoint: Path, *, name: str) -> None:
    """Train to `num_steps` from the checkpoint if there is one, leaving a final checkpoint."""
    step = learner.restore(load_checkpoint(checkpoint)) if checkpoint.exists() else 0
    started_at = saved_at = time.monotonic()
    first, losses = step, []
    num_steps = learner.config.num_steps
    while step < num_steps:
        losses.append(learner.advance(step))
        step += 1
        now = time.monotonic()
        if parallel.rank():
            continue
        if step % REPORT_EVERY == 0 or step == num_steps:
            pace = (now - started_at) / (step - first)
            minutes = pace * (num_steps - step) / 60
            mean = sum(losses) / len(losses)
            logger.info(
                "%s %d/%d loss %.4f, %.3f s a step, %.0f min left",
                name, step, num_steps, mean, pace, minutes,
            )  # fmt: skip
            losses = []
        if now - saved_at > CHECKPOINT_EVERY_S or step == num_steps:
            save_checkpoint(checkpoint, learner.state(step))
            saved_at = time.monotonic()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside the old one and swap them, so that a kill leaves one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; only tensors and plain values are accepted."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def averaged(path: Path, name: str) -> dict[str, Tensor]:
    """Return one network's averaged weights from a checkpoint."""
    averages = load_checkpoint(path)["averages"]
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in averages.items() if k.startswith(prefix)}
