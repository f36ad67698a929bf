"""One denoising step of many trajectories in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.denoising.families.family import Family
from workers.denoising.trajectory import Trajectory


def predict(family: Family, batch: Sequence[Trajectory]) -> list[Tensor]:
    """The guided prediction [1, C, h, w] of each trajectory, in order; changes none of them.

    Rows of the forward pass, for B trajectories of which G are guided:

        [ G without prompt | B with prompt ]      one row for an unguided job, two for a guided one
    """
    guided = [trajectory for trajectory in batch if trajectory.is_guided]
    num_guided = len(guided)
    inputs = {id(trajectory): trajectory.model_input for trajectory in batch}
    rows = [*guided, *batch]
    noise_pred = family.denoiser(
        torch.cat([inputs[id(trajectory)] for trajectory in rows]),
        torch.stack([trajectory.timestep for trajectory in rows]).to(family.device),
        _conditioning(guided, batch),
    )
    unconditional, conditional = noise_pred[:num_guided], noise_pred[num_guided:]
    index = {id(trajectory): row for row, trajectory in enumerate(guided)}
    return [
        _guide(unconditional[index[id(trajectory)]], row, trajectory.request.guidance_scale)
        if trajectory.is_guided
        else row.unsqueeze(0)
        for trajectory, row in zip(batch, conditional, strict=True)
    ]


def _conditioning(guided: Sequence[Trajectory], batch: Sequence[Trajectory]) -> dict[str, Tensor]:
    rows = [
        *(trajectory.conditioning.negative_prompt for trajectory in guided),
        *(trajectory.conditioning.prompt for trajectory in batch),
    ]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _guide(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, in Imagen's form): u + s (c - u)."""
    guided = unconditional + guidance_scale * (conditional - unconditional)
    return guided.unsqueeze(0)
