"""Jobs on the screen: the progress bar while they run, and the table of what came of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fleet.commands.console import Output
from producer.client import Client
from producer.contract import Status
from producer.errors import WaitTimeout
from producer.following import RESTART_PATIENCE_S
from producer.result import JobResult
from producer.trace import Trace

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedJob:
    """What came of a job, and where its image is."""

    trace: Trace
    result: JobResult
    image_path: Path | None = None


def follow(
    client: Client, job_ids: Sequence[str], output: Output, *, timeout_s: float | None
) -> list[Trace]:
    """Show a bar of steps until all jobs have ended; raises WaitTimeout, UnknownJob."""
    traces = {trace.job_id: trace for trace in client.statuses(job_ids)}
    give_up_at = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    with _progress_bar(output) as bar:
        task = bar.add_task("", total=_steps_asked(traces.values()))
        while True:
            bar.update(
                task,
                completed=sum(_steps_done(trace) for trace in traces.values()),
                description=_headline(list(traces.values())),
            )
            waiting = [job_id for job_id, t in traces.items() if not t.status.is_terminal]
            if not waiting:
                return list(traces.values())
            if time.monotonic() > give_up_at:
                raise WaitTimeout(waiting[0], timeout_s or 0.0, traces[waiting[0]].status)
            time.sleep(POLL_S)
            found = client.statuses(waiting, patience_s=RESTART_PATIENCE_S)
            traces.update({trace.job_id: trace for trace in found})


def show_finished(jobs: Sequence[FinishedJob], output: Output) -> None:
    """Print one row a job, and below them the images' paths and what went wrong."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for name in ("job", "outcome"):
        table.add_column(name, no_wrap=True)
    for name in ("k", "similarity", "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for finished in jobs:
        table.add_row(*_row(finished))
    output.rich.print(table)
    for finished in jobs:
        if finished.image_path is not None:
            output.rich.print(Text(str(finished.image_path)), soft_wrap=True)
        error = finished.result.error
        if error is not None:
            words = f"{finished.result.job_id} failed: {error.code}: {error.message}"
            output.rich.print(Text(words), soft_wrap=True)


def show_status(trace: Trace, output: Output, *, position: str) -> None:
    """Print what is known of one job, a fact a line."""
    table = Table.grid(padding=(0, 2))
    facts = {
        "job": trace.job_id,
        "status": f"{trace.status}{position}",
        "prompt": str(trace.job.get("prompt", "")),
        "model": str(trace.job.get("model", "")),
        "namespace": str(trace.job.get("namespace", "")),
        "steps": _steps_text(trace),
        "attempt": str(trace.attempt) if trace.attempt else "",
    }
    for name, fact in facts.items():
        if fact:
            table.add_row(Text(name, style="bold"), Text(fact))
    output.rich.print(table)


def seconds_of(result: JobResult) -> float | None:
    """Seconds from a worker's claim to the stored image."""
    timings = result.timings
    if timings is None:
        return None
    spent = timings.model_dump(exclude={"queued_s"}, exclude_none=True)
    return float(sum(spent.values()))


def as_json(finished: FinishedJob) -> dict[str, Any]:
    """The result, and the path of the image if one was written."""
    path = finished.image_path
    return finished.result.to_wire() | {"image_path": None if path is None else str(path)}


def _row(finished: FinishedJob) -> list[Text]:
    result = finished.result
    cache, steps, seconds = result.cache, result.steps, seconds_of(result)
    similarity = cache.similarity if cache is not None else None
    cells = [
        result.job_id,
        cache.outcome if cache is not None else result.status,
        str(cache.k) if cache is not None and cache.k else "-",
        "-" if similarity is None else f"{similarity:.3f}",
        "-" if steps is None else f"{steps.run}/{steps.asked}",
        "-" if seconds is None else f"{seconds:.2f}",
    ]
    styles = ["", _STYLES.get(cells[1], ""), "", "", "", ""]
    return [Text(cell, style=style) for cell, style in zip(cells, styles, strict=True)]


_STYLES: Final = {"hit": "green", "failed": "red", "cancelled": "yellow"}


def _progress_bar(output: Output) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=output.notes,
        transient=True,
        disable=not output.notes.is_terminal,
    )


def _headline(traces: list[Trace]) -> str:
    if len(traces) == 1:
        return traces[0].status.value
    ended = sum(trace.status.is_terminal for trace in traces)
    return f"{ended}/{len(traces)} jobs"


def _steps_asked(traces: Iterable[Trace]) -> int:
    return sum(int(trace.job.get("num_inference_steps") or 0) for trace in traces)


def _steps_done(trace: Trace) -> int:
    if trace.status.is_terminal:
        return _steps_asked([trace])
    is_running = trace.status is Status.RUNNING and trace.progress is not None
    return trace.progress.steps_done if is_running and trace.progress else 0


def _steps_text(trace: Trace) -> str:
    if trace.result is not None and trace.result.steps is not None:
        return f"{trace.result.steps.run} run of {trace.result.steps.asked} asked"
    if trace.progress is not None:
        return f"{trace.progress.steps_done} of {trace.progress.steps_asked}"
    return f"{_steps_asked([trace])} asked"
