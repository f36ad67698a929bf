"""One denoising step of many trajectories in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.denoising.trajectory import Trajectory
from workers.stopwatch import Stopwatch


class Forward:
    """Runs the denoiser for batches; keeps the stacked conditioning of the newest one.

    Most batches are made of the same jobs as the one before, and the conditioning of a large
    model is far larger than its latents.
    """

    def __init__(self, watch: Stopwatch) -> None:
        """`watch` gets the laps "gather" and "denoiser"."""
        self._watch = watch
        self._stacked_for: list[Trajectory] = []
        self._stacked: dict[str, Tensor] = {}

    def predict(self, batch: Sequence[Trajectory]) -> list[Tensor]:
        """The guided prediction [1, C, h, w] of each trajectory, in order; changes none of them.

        Rows of the forward pass, for B trajectories of which G are guided:

            [ G without prompt | B with prompt ]    one row for an unguided job, two for a guided
        """
        family = batch[0].family
        guided = [trajectory for trajectory in batch if trajectory.is_guided]
        with self._watch.lap("gather"):
            inputs = {id(trajectory): trajectory.model_input for trajectory in batch}
            rows = [*guided, *batch]
            latents = torch.cat([inputs[id(trajectory)] for trajectory in rows])
            timesteps = torch.stack([trajectory.timestep for trajectory in rows])
            conditioning = self._conditioning(guided, batch)
        with self._watch.lap("denoiser"):
            noise_pred = family.denoiser(latents, timesteps, conditioning)
        with self._watch.lap("gather"):
            return _guide(noise_pred, guided, batch)

    def forget(self) -> None:
        """Let go of jobs and tensors, when nothing is in flight."""
        self._stacked_for, self._stacked = [], {}

    def _conditioning(
        self, guided: Sequence[Trajectory], batch: Sequence[Trajectory]
    ) -> dict[str, Tensor]:
        if self._stacked_for != list(batch):  # trajectories are equal by identity
            rows = [
                *(trajectory.conditioning.negative_prompt for trajectory in guided),
                *(trajectory.conditioning.prompt for trajectory in batch),
            ]
            self.forget()  # before the new ones are made: they may be large
            self._stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            self._stacked_for = list(batch)
        return self._stacked


def _guide(
    noise_pred: Tensor, guided: Sequence[Trajectory], batch: Sequence[Trajectory]
) -> list[Tensor]:
    """Classifier-free guidance (Ho and Salimans 2022, in Imagen's form): u + s (c - u)."""
    without_prompt = {id(trajectory): row for row, trajectory in enumerate(guided)}
    predictions: list[Tensor] = []
    for row, trajectory in enumerate(batch, start=len(guided)):
        prediction = noise_pred[row : row + 1]
        if trajectory.is_guided:
            row_without = without_prompt[id(trajectory)]
            unconditional = noise_pred[row_without : row_without + 1]
            scale = trajectory.request.guidance_scale
            prediction = unconditional + scale * (prediction - unconditional)
        predictions.append(prediction)
    return predictions
