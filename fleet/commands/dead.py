"""`nirvana dead list, retry, drop`: messages that no worker could read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from fleet.commands.connection import client_settings
from fleet.commands.console import JsonOption, Output, UsageProblem
from producer.broker import naming_broker, open_connection
from workers.dead_letters import LETTERS_MAX, DeadLetter, DeadLetters

app = typer.Typer(name="dead", help="Messages that no worker could read: list, retry, drop.")

_SHOWN_CHARACTERS: Final = 60

IdsArgument = Annotated[list[str] | None, typer.Argument(help="As `dead list` shows them.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every message of the list.")]


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=LETTERS_MAX, help="The newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show the messages, and why nobody could read them."""
    output = Output(as_json=as_json)
    with _opened() as letters:
        found, num_kept = letters.read(limit=limit), letters.count()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("id", "died", "queue", "reason", "message"):
        table.add_column(heading)
    for letter in found:
        table.add_row(*map(escape, _cells(letter)))
    output.rich.print(table)
    output.finish({"kept": num_kept, "letters": [_wire(letter) for letter in found]})


@app.command()
def retry(
    letter_ids: IdsArgument = None, every: AllOption = False, as_json: JsonOption = False
) -> None:
    """Put messages back into their queues: for a worker that knows their task by now."""
    output = Output(as_json=as_json)
    with _opened() as letters:
        sent = letters.retry(_chosen(letters, letter_ids, every))
    output.rich.print(f"{len(sent):,} put back")
    output.finish({"retried": [letter.letter_id for letter in sent]})


@app.command()
def drop(
    letter_ids: IdsArgument = None, every: AllOption = False, as_json: JsonOption = False
) -> None:
    """Forget messages."""
    output = Output(as_json=as_json)
    with _opened() as letters:
        dropped = letters.drop(_chosen(letters, letter_ids, every))
    output.rich.print(f"{len(dropped):,} dropped")
    output.finish({"dropped": [letter.letter_id for letter in dropped]})


@contextmanager
def _opened() -> Iterator[DeadLetters]:
    broker_url = client_settings().broker_url
    with naming_broker(broker_url), closing(open_connection(broker_url)) as connection:
        yield DeadLetters(connection)


def _chosen(letters: DeadLetters, letter_ids: list[str] | None, every: bool) -> list[str]:
    if bool(letter_ids) == every:
        raise UsageProblem("give ids as `nirvana dead list` shows them, or --all")
    return letter_ids or [letter.letter_id for letter in letters.read()]


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    shown = " ".join(_wire(letter)["raw"].split())
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "..."
    died = f"{datetime.fromtimestamp(letter.died_at_s, UTC):%Y-%m-%d %H:%M:%S}"
    return letter.letter_id, died, letter.queue, letter.reason, shown


def _wire(letter: DeadLetter) -> dict[str, Any]:
    """What JSON can hold: a byte that is no UTF-8 is shown as U+FFFD."""
    text = letter.raw.encode(errors="surrogateescape").decode(errors="replace")
    return {**asdict(letter), "queue": letter.queue, "raw": text}
