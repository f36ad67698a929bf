"""The models that this worker serves: what jobs may ask of them, and what clients are told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import redis

from producer.contract import GenerationJob
from producer.models import ModelTable, ServedModel, choose_model

logger = logging.getLogger(__name__)

_ANNOUNCE_EVERY_S: Final = 2.0


class ServedModels:
    """All models of this worker, loaded or not."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.slug: model for model in models}

    @property
    def slugs(self) -> list[str]:
        """The default first."""
        return list(self._models)

    def complete(self, job: GenerationJob) -> GenerationJob:
        """Fill in what the job left to its model; raises UnknownModel, InvalidJob."""
        return choose_model(self._models, job.model).complete(job)

    def announce(self, table: ModelTable, seconds_per_step: Callable[[str], float | None]) -> None:
        """Tell clients of all models, with the speed measured so far; raises RedisError."""
        for slug, model in self._models.items():
            table.announce(replace(model, seconds_per_step=seconds_per_step(slug) or 0.0))

    @contextmanager
    def announced(
        self, table: ModelTable, seconds_per_step: Callable[[str], float | None]
    ) -> Iterator[None]:
        """Keep all models in `nirvana:models` while the block runs."""
        closing_down = threading.Event()

        def keep_announced() -> None:
            while True:
                try:
                    self.announce(table, seconds_per_step)
                except redis.RedisError as error:
                    logger.warning("models not announced: %s", error)
                if closing_down.wait(_ANNOUNCE_EVERY_S):
                    return

        thread = threading.Thread(target=keep_announced, name="models", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closing_down.set()
            thread.join()
