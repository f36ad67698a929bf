"""A loaded model's torch modules: their memory, their layout, their compilation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from workers.denoising.families.family import Family

_FAMILIES = "workers.denoising.families"
DENOISERS = ("unet", "transformer")  # diffusers' names for the part that runs at every step


def modules_of(family: object) -> Iterator[tuple[str, nn.Module]]:
    """The model's parts with the names of their attributes, those of its helpers included."""
    for name, part in vars(family).items():
        for each in _members(part):
            if isinstance(each, nn.Module):
                yield name, each
            elif type(each).__module__.startswith(_FAMILIES) and hasattr(each, "__dict__"):
                yield from modules_of(each)


def _members(part: object) -> Iterable[object]:
    """What a collection holds, or the part itself."""
    match part:
        case dict():
            return part.values()
        case list() | tuple():
            return part
        case _:
            return (part,)


def memory_bytes(family: Family) -> int:
    """Bytes of all weights and buffers."""
    tensors = {
        id(tensor): tensor  # parts may share weights
        for _, module in modules_of(family)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensor.nbytes for tensor in tensors.values())


def arrange(family: Family, *, channels_last: bool = False, compiled: bool = False) -> None:
    """Change how the model computes, not what; in place, before its first use.

    `compiled` costs minutes at the first steps of each image size: torch compiles for the first
    batch size it meets, and for any at the second. Neither is measured on a GPU.
    """
    for name, module in list(modules_of(family)):
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled and name in DENOISERS:
            module.compile()


def unload(family: Family) -> None:
    """Free the memory of all weights; the model cannot compute any more."""
    for _, module in modules_of(family):
        module.to("meta")
