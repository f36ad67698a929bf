"""A log with its embeddings, and its neighbour lists as they are asked for; both kept on disk."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from evaluation.embedders import Embedder
from evaluation.lists import NeighbourLists, neighbour_lists
from evaluation.sharing import SharedBy, sharing_groups
from evaluation.trace import Trace
from evaluation.vectors import HalfVectors, Progress, embed_all


class Stages(Protocol):
    """Shows long work: one bar for each stage."""

    def __call__(self, title: str, total: int) -> AbstractContextManager[Progress]: ...


def silent(title: str, total: int) -> AbstractContextManager[Progress]:
    """Show nothing."""
    del title, total
    return nullcontext(lambda _: None)


def default_cache_dir() -> Path:
    """Where embeddings and neighbour lists are kept: the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nirvana" / "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A log of n rows with its vectors [n, dim]."""

    trace: Trace
    vectors: HalfVectors = field(repr=False)
    embedder_id: str
    embedder_caveat: str
    cache_dir: Path
    stages: Stages = silent

    def lists(self, shared_by: SharedBy, *, floor: float) -> NeighbourLists:
        """Each row's nearest earlier rows of those it may start from."""
        with self.stages(f"neighbours by {shared_by}", len(self.trace)) as progress:
            return neighbour_lists(
                self.vectors,
                sharing_groups(self.trace, shared_by),
                key=f"{self.embedder_id} {self.trace.fingerprint()}",
                floor=floor,
                cache_dir=self.cache_dir,
                progress=progress,
            )

    @property
    def sharings(self) -> tuple[SharedBy, ...]:
        """The kinds of sharing that this log's columns tell apart."""
        known = [SharedBy.NAMESPACE]
        if self.trace.users is not None:
            known.insert(0, SharedBy.USER)
        if self.trace.namespaces is not None:
            known.append(SharedBy.ALL)
        return tuple(known)


def prepare(
    trace: Trace,
    embedder: Embedder,
    *,
    cache_dir: Path,
    stages: Stages = silent,
) -> Prepared:
    """Embed a log; what was embedded before is read from `cache_dir`."""
    with stages("embedding", len(trace)) as progress:
        vectors = embed_all(embedder, trace.prompts, cache_dir=cache_dir, progress=progress)
    return Prepared(
        trace=trace,
        vectors=vectors,
        embedder_id=embedder.id,
        embedder_caveat=embedder.caveat,
        cache_dir=cache_dir,
        stages=stages,
    )
