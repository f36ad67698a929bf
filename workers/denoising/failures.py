"""Containing what a model raises: nothing but the culprits fails."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from workers.denoising.errors import DenoisingError, DenoisingFailed, DeviceBroken, OutOfMemory

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# Items that failed alone, with no success between: below it they may be to blame, then hardly.
NUM_FAILED_MAX = 5


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
        release_memory()
    if len(items) == 1:
        on_failure(items[0], failure)
        return
    if isinstance(failure, OutOfMemory):
        on_out_of_memory(items)
    half = len(items) // 2
    for part in (items[:half], items[half:]):
        run_contained(run, part, on_failure=on_failure, on_out_of_memory=on_out_of_memory)


class Health:
    """Contains failures as `run_contained` does, and notices when nothing works any more.

    A broken CUDA context fails every pass for good; the jobs that meet it are not to blame.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_failed: dict[str, int] = {}  # by stage, since its last success

    def run(
        self,
        stage: str,
        run: Callable[[list[Item]], None],
        items: list[Item],
        *,
        on_failure: Callable[[Item, DenoisingError], None],
        on_out_of_memory: Callable[[list[Item]], None] = lambda items: None,
    ) -> None:
        """Run over all items, the culprits apart. Raises DeviceBroken, before any item fails.

        That is at once where the device cannot even add (not measured on a GPU), and after
        NUM_FAILED_MAX items of a stage in a row, each alone, wherever the fault lies.
        """
        failures: list[tuple[Item, DenoisingError]] = []
        run_contained(
            run,
            items,
            on_failure=lambda item, error: failures.append((item, error)),
            on_out_of_memory=on_out_of_memory,
        )
        if len(failures) < len(items):
            self._num_failed[stage] = 0
        elif failures:
            self._check(stage, [error for _, error in failures])
        for item, error in failures:
            on_failure(item, error)

    def _check(self, stage: str, errors: list[DenoisingError]) -> None:
        num_new = sum(isinstance(error, DenoisingFailed) for error in errors)
        self._num_failed[stage] = num_failed = self._num_failed.get(stage, 0) + num_new
        if num_failed >= NUM_FAILED_MAX:
            raise DeviceBroken(f"{num_failed} in a row failed in stage {stage}, each by itself")
        if num_new and self._device.type == "cuda":
            try:
                torch.ones(1, device=self._device).add(1).item()
            except torch.OutOfMemoryError:  # a full device is none that is broken
                logger.warning("no memory to see whether the device still computes")
            except RuntimeError as error:  # a broken context stays so until the process ends
                raise DeviceBroken(f"the device does not compute any more: {error}") from error


def typed(error: Exception) -> DenoisingError:
    """The error as this package's own, with its causes but without their frames.

    Frames would hold the tensors of the failed attempt for as long as the caller keeps the error.
    """
    if isinstance(error, DenoisingError):
        return error
    kind = OutOfMemory if is_out_of_memory(error) else DenoisingFailed
    failure = kind(f"{kind.__doc__} ({type(error).__name__}: {error})")
    failure.__cause__ = error
    cause: BaseException | None = error
    while cause is not None and cause.__traceback__ is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return failure


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU (where torch has no class for it)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what a failed attempt left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
