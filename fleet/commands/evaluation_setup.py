"""What the options of `nirvana simulate` mean together, and the bars of long work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cache.entry import StateKind
from cache.selector import Selector, Thresholds
from cache.settings import Policy
from evaluation.costs import Prices
from evaluation.errors import OptionInvalid
from evaluation.prepared import Stages
from evaluation.queueing import Seconds, ServiceTimes, gpus_needed, poisson_arrivals, read_arrivals
from evaluation.replay import CacheOptions
from evaluation.simulate import Grid, Load
from evaluation.trace import Trace
from evaluation.vectors import Progress as Advance
from fleet.commands.console import Output


def parse_selector(thresholds: str | None) -> Selector:
    """The paper's table, or `SHARE:COSINE,...`; raises OptionInvalid."""
    if thresholds is None:
        return Selector()
    expected = OptionInvalid(
        f"--thresholds {thresholds}: expected SHARE:COSINE,... with both rising, "
        "shares between 0 and 1 and cosines between -1 and 1"
    )
    try:
        rows = [tuple(map(float, pair.split(":"))) for pair in thresholds.split(",")]
        table = tuple((share, floor) for share, floor in rows)
    except ValueError:
        raise expected from None
    shares, floors = [share for share, _ in table], [floor for _, floor in table]
    is_rising = shares == sorted(set(shares)) and floors == sorted(floors)
    if not (is_rising and shares[0] > 0 and shares[-1] < 1 and -1 <= floors[0] <= floors[-1] <= 1):
        raise expected
    return Selector(
        fractions=tuple(shares),
        thresholds=Thresholds(version="given", is_calibrated=False, rows=table),
    )


def capacity_shares(percents: list[float] | None) -> tuple[float, ...]:
    """Shares of percents, rising; raises OptionInvalid."""
    shares = tuple(sorted({percent / 100 for percent in percents or (1, 5, 10, 25, 50, 100)}))
    if not all(0 < share <= 1 for share in shares):
        raise OptionInvalid("--capacity: expected percents above 0 and up to 100")
    return shares


def parse_prices(seconds_per_step: float | None, gpu_price: float | None) -> Prices | None:
    """GPU hours need the seconds, money also the price; raises OptionInvalid."""
    if seconds_per_step is None:
        if gpu_price is not None:
            raise OptionInvalid("--gpu-price needs --seconds-per-step")
        return None
    return Prices(seconds_per_step=seconds_per_step, gpu_price_per_hour=gpu_price)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How jobs come, and to how many GPUs; raises OptionInvalid for what does not go together."""

    seconds_per_step: float | None
    arrivals: Path | None
    rate: float | None
    gpus: int | None
    seed: int

    def __post_init__(self) -> None:
        if self._is_asked_for and self.seconds_per_step is None:
            raise OptionInvalid("--arrivals, --rate and --gpus need --seconds-per-step")
        if self.arrivals is not None and self.rate is not None:
            raise OptionInvalid("--arrivals and --rate exclude each other")

    def load(self, trace: Trace, *, steps: int) -> Load | None:
        """The log's jobs as a load; None where no latency is asked for."""
        if not self._is_asked_for or self.seconds_per_step is None:
            return None
        times_s = self._times(trace)
        service = ServiceTimes(seconds_per_step=self.seconds_per_step)
        uncached = service.without_cache(len(trace), steps)
        num_gpus = self.gpus or gpus_needed(times_s, uncached)
        return Load(arrivals_s=times_s, service=service, num_gpus=num_gpus)

    @property
    def _is_asked_for(self) -> bool:
        return not (self.arrivals is None and self.rate is None and self.gpus is None)

    def _times(self, trace: Trace) -> Seconds:
        """Arrivals from a file, at a rate, or as the log says."""
        if self.arrivals is not None:
            return read_arrivals(self.arrivals, len(trace))
        if self.rate is not None:
            rng = np.random.default_rng(self.seed)
            return poisson_arrivals(len(trace), per_second=self.rate, rng=rng)
        if trace.times_s is None:
            raise OptionInvalid(f"{trace.name} has no times: give --arrivals or --rate")
        return trace.times_s


def parse_grid(
    base: CacheOptions,
    policies: Sequence[Policy] | None,
    percents: list[float] | None,
    kinds: Sequence[StateKind] | None,
) -> Grid:
    """All that is not limited; raises OptionInvalid."""
    return Grid(
        policies=tuple(policies or Policy),
        capacity_shares=capacity_shares(percents),
        state_kinds=tuple(kinds or StateKind),
        base=base,
    )


@contextmanager
def progress_bars(output: Output) -> Iterator[Stages]:
    """A bar for each stage, with its time to come, on stderr; none where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.notes, disable=not output.notes.is_terminal) as bars:

        @contextmanager
        def stage(title: str, total: int) -> Iterator[Advance]:
            task = bars.add_task(title, total=total)
            yield lambda num: bars.advance(task, num)

        def show(title: str, total: int) -> AbstractContextManager[Advance]:
            return stage(title, total)

        yield show
