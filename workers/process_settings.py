"""All that a worker process is told: the client's settings, the cache's, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cache.settings import CacheSettings
from producer.settings import ProducerSettings, load_settings
from workers.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """The settings of the three packages that meet in a worker."""

    producer: ProducerSettings
    cache: CacheSettings
    worker: WorkerSettings

    @classmethod
    def load(cls) -> Self:
        """Read the environment; raises SettingsInvalid naming the first bad variable."""
        return cls(
            producer=load_settings(ProducerSettings),
            cache=CacheSettings.load(),
            worker=load_settings(WorkerSettings),
        )
