"""The judge: a small classifier of what a picture shows, independent of the model's own CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from models.dataset import VALUES

JUDGED = ("subject", "background", "position", "size")
POOLED_SIDE = 4


class JudgeNet(nn.Module):
    """Four residual levels and a linear head for each attribute, (B, 3, 64, 64) to logits."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        )
        pairs = [*pairwise(channels), (channels[-1], channels[-1])]
        self.levels = nn.Sequential(*(_Level(a, b, stride=2) for a, b in pairs[:-1]))
        self.last = _Level(*pairs[-1], stride=1)
        # Averaging over the picture forgets where things are, so two heads see a 4 x 4 map.
        self.places = nn.Conv2d(channels[-1], 16, 1)
        mapped = 16 * POOLED_SIDE**2
        widths = {"subject": channels[-1], "background": channels[-1]}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(widths.get(name, mapped), len(VALUES[name])) for name in JUDGED}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return (B, classes) logits by attribute."""
        features = self.last(self.levels(self.stem(images)))
        pooled = features.mean((2, 3))
        places = functional.adaptive_avg_pool2d(self.places(features), POOLED_SIDE).flatten(1)
        return {
            name: head(pooled if name in ("subject", "background") else places)
            for name, head in self.heads.items()
        }


class _Level(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Halve the side where the stride is 2."""
        inner = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(inner)) + self.shortcut(x))
