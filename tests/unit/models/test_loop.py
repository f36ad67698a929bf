"""A killed run goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import loop
from models.config import StageConfig

CONFIG = StageConfig(num_steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2)


class Line(loop.Learner):
    """Fits y = 3 x with a little noise."""

    def __init__(self, config: StageConfig = CONFIG) -> None:
        torch.manual_seed(0)
        self.line = nn.Linear(1, 1)
        super().__init__(config, {"line": self.line})

    def loss(self, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        x = torch.tensor(rng.normal(size=(self.config.batch_size, 1)), dtype=torch.float32)
        y = 3 * x + 0.1 * torch.randn(x.shape, generator=noise)
        error: Tensor = self.line(x) - y
        return error.square().mean()


class KilledError(Exception):
    """Stands for the kill."""


def test_a_resumed_run_takes_the_very_same_steps(tmp_path: Path) -> None:
    whole, first = Line(), Line()
    losses = [whole.advance(step) for step in range(8)]
    for step in range(5):
        first.advance(step)
    loop.save_checkpoint(tmp_path / "line.pt", first.state(5))
    second = Line()
    assert second.restore(loop.load_checkpoint(tmp_path / "line.pt")) == 5
    assert [second.advance(step) for step in range(5, 8)] == losses[5:]
    weights = [learner.averages.state_dict()["line.weight"] for learner in (second, whole)]
    assert torch.equal(*weights)


def test_run_continues_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = tmp_path / "line.pt", list[int]()

    class Killed(Line):
        def advance(self, step: int) -> float:
            if step == 7 and 7 not in steps:
                steps.append(step)
                raise KilledError
            steps.append(step)
            return super().advance(step)

    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(KilledError):
        loop.run(Killed(), path, name="line")
    resumed = Killed()
    loop.run(resumed, path, name="line")
    assert steps == [*range(8), *range(7, 12)]
    assert loop.load_checkpoint(path)["step"] == CONFIG.num_steps


def test_a_kill_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "line.pt"
    loop.save_checkpoint(path, {"step": 1})

    def half(_: object, to: Path) -> None:
        to.write_bytes(b"half")
        raise KilledError

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KilledError):
        loop.save_checkpoint(path, {"step": 2})
    assert loop.load_checkpoint(path) == {"step": 1}


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [loop.learning_rate(CONFIG, step) for step in range(CONFIG.num_steps + 1)]
    assert rates[0] == pytest.approx(5e-3)
    assert rates[2:7] == [pytest.approx(1e-2)] * 5
    assert rates[7:] == sorted(rates[7:], reverse=True)
    assert rates[-1] == pytest.approx(0)
