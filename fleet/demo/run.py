"""The demo from start to end: a fleet of its own in a temporary folder, gone when it is over."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet.demo.contact_sheet import write_contact_sheet
from fleet.demo.session import Comparison, cards, num_prompts, run_sessions
from fleet.demo.summary import Summary, headline, summarize
from fleet.errors import FleetError
from fleet.record import FlowerAddress
from fleet.settings import load_settings
from fleet.supervisor import FleetEvent
from fleet.up import running_fleet
from producer.client import Client
from producer.settings import ProducerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoListener:
    """Who is told how the demo goes; calls may come from other threads."""

    on_event: Callable[[FleetEvent], None]
    on_ready: Callable[[FlowerAddress, int], None]  #: with the number of prompts
    on_done: Callable[[Comparison], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What came of it."""

    comparisons: list[Comparison]
    summary: Summary
    contact_sheet: Path
    elapsed_s: float


def run_demo(out: Path, listener: DemoListener) -> Demo:
    """Run everything and write `out`/contact-sheet.png; nothing is left running.

    Raises FleetError, or ProducerError where a job does not end well.
    """
    started_at = time.monotonic()
    sheet = _writable(out) / "contact-sheet.png"
    with tempfile.TemporaryDirectory(prefix="nirvana-demo-") as folder:
        settings = load_settings(
            home=Path(folder) / "home",
            flower_port=0,
            # The demo's own, whatever this shell is set up for.
            database_url=None,
            broker_url=None,
            s3_url=None,
        )
        Path(folder).chmod(0o711)  # PostgreSQL under root runs as another user, who must pass
        with running_fleet(settings, on_event=listener.on_event) as fleet:
            listener.on_ready(fleet.flower, num_prompts())
            with Client(ProducerSettings(broker_url=fleet.addresses.broker_url)) as client:
                comparisons = run_sessions(client, on_done=listener.on_done)
    summary = summarize(comparisons)
    write_contact_sheet(sheet, title=headline(summary), cards=cards(comparisons))
    return Demo(
        comparisons=comparisons,
        summary=summary,
        contact_sheet=sheet,
        elapsed_s=time.monotonic() - started_at,
    )


def _writable(out: Path) -> Path:
    """Create the folder before anything is started; raises FleetError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise FleetError(f"--out {out} cannot be written: {error.strerror}") from None
    return out
