"""Prompts that wait to be encoded, between two steps, as many as fit into about one step's time."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future

from workers.denoising.failures import Health
from workers.denoising.families.family import Encoding, Family
from workers.denoising.portion import Portion
from workers.stopwatch import Stopwatch

ENCODE_BATCH_SIZE_MAX = 32  # prompts


class Prompt:
    """A prompt that waits to be encoded."""

    def __init__(self, *, text: str, negative: str, family: Family) -> None:
        self.text = text
        self.negative = negative
        self.family = family
        self.future: Future[Encoding] = Future()
        self.future.set_running_or_notify_cancel()  # Future.cancel() has no effect from here on


class PromptEncoder:
    """Encodes on the engine's thread; resolves the futures of prompts, raises only DeviceBroken."""

    def __init__(self, watch: Stopwatch, health: Health) -> None:
        """`watch` gets the lap "encode"."""
        self._watch = watch
        self._health = health
        self._portion = Portion(size_max=ENCODE_BATCH_SIZE_MAX)

    def take(self, waiting: deque[Prompt], step_s: float | None) -> list[Prompt]:
        """Take the oldest prompts of one model off the queue: no more than stall a step's time."""
        taken: list[Prompt] = []
        size = self._portion.size(step_s)
        while waiting and len(taken) < size:
            if taken and waiting[0].family is not taken[0].family:
                break
            taken.append(waiting.popleft())
        return taken

    def encode(self, prompts: list[Prompt]) -> None:
        """Encode prompts of one model in one pass."""
        with self._watch.lap("encode"):
            self._health.run(
                "encode",
                self._encode,
                prompts,
                on_failure=lambda prompt, error: prompt.future.set_exception(error),
            )

    def _encode(self, prompts: list[Prompt]) -> None:
        started_at = time.monotonic()
        encodings = prompts[0].family.encode(
            [prompt.text for prompt in prompts], [prompt.negative for prompt in prompts]
        )
        assert len(encodings) == len(prompts)
        self._portion.note(len(prompts), time.monotonic() - started_at)
        for prompt, encoding in zip(prompts, encodings, strict=True):
            prompt.future.set_result(encoding)
