"""`nirvana submit | status | wait | cancel`: the client, on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet.commands.connection import client_settings
from fleet.commands.console import FAILED, JsonOption, Output, UsageProblem
from fleet.commands.image_files import ImageFiles
from fleet.commands.job_file import JobLine, with_lasting_ids
from fleet.commands.job_request import check_jobs, read_metadata, read_webhook, requested_jobs
from fleet.commands.job_view import FinishedJob, as_json, follow, show_finished, show_status
from producer.client import Client
from producer.contract import CacheMode, GenerationJob, Priority, Status
from producer.errors import ProducerError
from producer.handle import JobHandle
from producer.trace import Trace

app = typer.Typer()

IMAGE, JOB, CALLBACK, WAITING = "The image", "The job", "Callback", "Waiting"
PromptArgument = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to paint.")]
JobIdArgument = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `submit` printed it.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="PNG file, or a folder for several jobs. Waits.", rich_help_panel=WAITING),
]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Seconds to wait at most.", rich_help_panel=WAITING)
]


def _in(panel: str, text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel)


def _flag(name: str, panel: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False)


@app.command(rich_help_panel="Jobs")
def submit(
    prompt: PromptArgument = None,
    file: Annotated[Path | None, _in(JOB, "JSON Lines: a job of the wire form a line.")] = None,
    seed: Annotated[int | None, _in(IMAGE, "Drawn, and reported, if not given.")] = None,
    seeds: Annotated[int | None, _in(IMAGE, "That many jobs, one per seed.")] = None,
    steps: Annotated[int | None, _in(IMAGE, "Denoising steps, 1 to 200.")] = None,
    guidance: Annotated[float | None, _in(IMAGE, "Guidance scale, 0 to 30.")] = None,
    width: Annotated[int | None, _in(IMAGE, "Pixels.")] = None,
    height: Annotated[int | None, _in(IMAGE, "Pixels.")] = None,
    negative: Annotated[str | None, _in(IMAGE, "What not to paint.")] = None,
    model: Annotated[str | None, _in(IMAGE, "The fleet's default, if not given.")] = None,
    namespace: Annotated[str | None, _in(JOB, "Tenant; nothing is reused across.")] = None,
    user: Annotated[str | None, _in(JOB, "Whose states to reuse.")] = None,
    priority: Annotated[Priority | None, _in(JOB, "Who goes first.")] = None,
    cache: Annotated[CacheMode | None, _in(JOB, "Bypass: neither read nor write.")] = None,
    deadline_s: Annotated[float | None, _in(JOB, "Worthless after so many seconds.")] = None,
    job_id: Annotated[str | None, _in(JOB, "UUID; sent twice, it is one job.")] = None,
    metadata: Annotated[list[str] | None, _in(JOB, "KEY=VALUE, returned as sent.")] = None,
    webhook_url: Annotated[str | None, _in(CALLBACK, "Called when the job ends.")] = None,
    webhook_endpoint: Annotated[str | None, _in(CALLBACK, "A registered endpoint.")] = None,
    again: Annotated[bool, _flag("--again", JOB, "Of a file, also what was sent.")] = False,
    wait: Annotated[bool, _flag("--wait", WAITING, "Until all jobs have ended.")] = False,
    out: OutOption = None,
    timeout_s: TimeoutOption = None,
    json: JsonOption = False,
) -> int:
    """Send a prompt, or a file of jobs; a second run of a file sends only what is missing."""
    given = {
        "prompt": prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": width,
        "height": height,
        "negative_prompt": negative,
        "model": model,
        "namespace": namespace,
        "user": user,
        "priority": priority,
        "cache": cache,
        "deadline_s": deadline_s,
        "job_id": job_id,
        "metadata": read_metadata(metadata or []),
        "webhook": read_webhook(webhook_url, webhook_endpoint),
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if again and file is None:
        raise UsageProblem("--again goes with --file: a PROMPT is a new job each time")
    request = Request(
        lines=requested_jobs(fields, file, seeds),
        resumed_file=None if again else file,
        is_waiting=wait or out is not None,
        timeout_s=timeout_s,
    )
    return _submit(request, Output(as_json=json), out)


@app.command(rich_help_panel="Jobs")
def status(job_id: JobIdArgument, json: JsonOption = False) -> None:
    """Show where a job is."""
    output = Output(as_json=json)
    with Client(client_settings()) as client:
        trace = client.status(job_id)
        position = client.position(job_id) if trace.status is Status.SUBMITTED else None
    words, facts = "", {}
    if position is not None:
        wait_s = position.estimated_wait_s
        words = f", {position.num_ahead} ahead"
        words += "" if wait_s is None else f", at most {wait_s:.0f} s with one worker"
        facts = {"num_ahead": position.num_ahead, "estimated_wait_s": wait_s}
    show_status(trace, output, position=words)
    if trace.result is not None:
        show_finished([FinishedJob(trace=trace, result=trace.result)], output)
    output.finish(_status_json(trace) | facts)


@app.command(rich_help_panel="Jobs")
def wait(
    job_id: JobIdArgument,
    out: OutOption = None,
    timeout_s: TimeoutOption = None,
    json: JsonOption = False,
) -> int:
    """Wait for a job's image."""
    output = Output(as_json=json)
    files = _checked_files(out, num_jobs=1)
    with Client(client_settings()) as client:
        (finished,) = _finish(client, [job_id], output, files, timeout_s)
    output.finish(as_json(finished))
    return 0 if finished.result.status is Status.SUCCEEDED else FAILED


@app.command(rich_help_panel="Jobs")
def cancel(job_id: JobIdArgument, json: JsonOption = False) -> None:
    """End a job, waiting or running."""
    output = Output(as_json=json)
    with Client(client_settings()) as client:
        is_asked = client.cancel(job_id)
        state = client.status(job_id).status
    output.rich.print("asked to end" if is_asked else f"has ended already: {state}")
    output.finish({"job_id": job_id, "is_asked": is_asked, "status": state})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `submit` was asked to do."""

    lines: list[JobLine]
    resumed_file: Path | None  #: the file whose jobs keep their ids from run to run
    is_waiting: bool
    timeout_s: float | None


def _submit(request: Request, output: Output, out: Path | None) -> int:
    files = _checked_files(out, num_jobs=len(request.lines))
    settings = client_settings()
    lines = request.lines
    if request.resumed_file is not None:
        lines = with_lasting_ids(request.resumed_file, lines, default_namespace=settings.namespace)
    with Client(settings) as client:
        check_jobs(client, settings, lines)
        known = client.known([line.job.job_id for line in lines if line.job.job_id is not None])
        job_ids = _send(client, [line.job for line in lines], output)
        _tell_known(len(known), request, output)
        if not request.is_waiting:
            _show_sent(client, job_ids, known, output)
            return 0
        # Whoever interrupts the wait can come back to it.
        for job_id in job_ids:
            output.notes.print("submitted", job_id)
        finished = _finish(client, job_ids, output, files, request.timeout_s)
    jobs = [as_json(job) | {"is_new": job.result.job_id not in known} for job in finished]
    output.finish({"jobs": jobs})
    return 0 if all(job.result.status is Status.SUCCEEDED for job in finished) else FAILED


def _tell_known(num_known: int, request: Request, output: Output) -> None:
    if num_known:
        hint = "" if request.resumed_file is None else "; --again sends them once more"
        output.notes.print(f"{num_known} of {len(request.lines)} jobs were sent before{hint}")


def _show_sent(client: Client, job_ids: list[str], known: set[str], output: Output) -> None:
    for job_id in job_ids:
        output.rich.print(job_id)
    if not output.is_json:
        return
    jobs = [
        {"job_id": trace.job_id, "status": trace.status, "is_new": trace.job_id not in known}
        for trace in client.statuses(job_ids)
    ]
    output.finish({"jobs": jobs})


def _send(client: Client, jobs: list[GenerationJob], output: Output) -> list[str]:
    """Submit all; where the broker goes away in the middle, say what was sent."""
    sent: list[JobHandle] = []
    try:
        client.submit_many(jobs, on_submitted=sent.append)
    except ProducerError:
        if sent:
            output.notes.print(f"sent {len(sent)} of {len(jobs)} jobs:")
            for handle in sent:
                output.notes.print(handle.job_id)
        raise
    return [handle.job_id for handle in sent]


def _finish(
    client: Client,
    job_ids: Sequence[str],
    output: Output,
    files: ImageFiles | None,
    timeout_s: float | None,
) -> list[FinishedJob]:
    """Wait for all, write their images, and show the table."""
    finished = []
    for trace in follow(client, job_ids, output, timeout_s=timeout_s):
        assert trace.result is not None, "a terminal trace has its result"
        path = None
        if files is not None and trace.result.image is not None:
            path = files.write(trace.job_id, client.image(trace.result))
        finished.append(FinishedJob(trace=trace, result=trace.result, image_path=path))
    show_finished(finished, output)
    return finished


def _checked_files(out: Path | None, *, num_jobs: int) -> ImageFiles | None:
    if out is None:
        return None
    files = ImageFiles(out, num_jobs=num_jobs)
    files.check()
    return files


def _status_json(trace: Trace) -> dict[str, Any]:
    progress = trace.progress
    return {
        "job_id": trace.job_id,
        "status": trace.status,
        "attempt": trace.attempt,
        "steps_done": progress.steps_done if progress else None,
        "steps_asked": trace.job.get("num_inference_steps"),
        "job": trace.job,
        "result": trace.result.to_wire() if trace.result else None,
    }
