"""Containing what a model raises: nothing but the culprits fails."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from workers.denoising.errors import DenoisingError, DenoisingFailed, OutOfMemory

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def run_contained(
    run: Callable[[list[Item]], None],
    items: list[Item],
    *,
    on_failure: Callable[[Item, DenoisingError], None],
    on_out_of_memory: Callable[[list[Item]], None] = lambda items: None,
) -> None:
    """Run over all items; if that raises, over each half by itself, down to single items.

    `run` does all or nothing. `on_failure` gets an item that fails alone, `on_out_of_memory` a
    group of two or more that did not fit. Memory is given back before the next attempt.
    """
    if not items:
        return
    try:
        run(items)
        return
    except Exception as error:  # whatever a model may raise must not end the engine's thread
        logger.warning("%d item(s) failed together: %r", len(items), error, exc_info=True)
        failure = typed(error)
    if isinstance(failure, OutOfMemory):
        _release_memory()
    if len(items) == 1:
        on_failure(items[0], failure)
        return
    if isinstance(failure, OutOfMemory):
        on_out_of_memory(items)
    half = len(items) // 2
    for part in (items[:half], items[half:]):
        run_contained(run, part, on_failure=on_failure, on_out_of_memory=on_out_of_memory)


def typed(error: Exception) -> DenoisingError:
    """The error as this package's own, with its cause but without the cause's frames.

    Frames would hold the tensors of the failed attempt for as long as the caller keeps the error.
    """
    if isinstance(error, DenoisingError):
        return error
    kind = OutOfMemory if is_out_of_memory(error) else DenoisingFailed
    failure = kind(f"{kind.__doc__} ({type(error).__name__}: {error})")
    failure.__cause__ = error.with_traceback(None)
    return failure


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU (where torch has no class for it)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
