"""`nirvana cache namespace`: whether a namespace caches, how much, and what share is shadowed."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from cache.namespaces import REFRESH_S, change_rules, read_rules
from fleet.commands.console import JsonOption, Output, UsageProblem
from fleet.commands.database import database_transaction
from producer.contract import Namespace

app = typer.Typer()


class Switch(StrEnum):
    """Of a namespace's cache."""

    ON = "on"
    OFF = "off"


@app.command("namespace")
def set_namespace(
    name: Annotated[str, typer.Argument(help="The namespace, as jobs name it.")],
    cache: Annotated[
        Switch | None,
        typer.Option(help="off: its jobs look nothing up and store nothing; what is cached stays."),
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(min=0, help="Bytes of states that it keeps.")
    ] = None,
    shadow: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of its hits to draw once more without the cache."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a namespace has set, and change what is given; workers follow within seconds."""
    output = Output(as_json=as_json)
    _check_name(name)
    is_cached = None if cache is None else cache is Switch.ON
    is_change = not (cache is None and capacity is None and shadow is None)
    with database_transaction() as connection:
        if is_change:
            rules = change_rules(
                connection,
                name,
                is_cached=is_cached,
                capacity_bytes=capacity,
                shadow_fraction=shadow,
            )
        else:
            rules = read_rules(connection, name)
    size = "NIRVANA_CACHE_CAPACITY_BYTES"
    if rules.capacity_bytes is not None:
        size = f"{rules.capacity_bytes:,} bytes"
    output.rich.print(
        f"namespace '{name}': cache {'on' if rules.is_cached else 'off'}, capacity {size}, "
        f"{rules.shadow_fraction:.2%} of its hits are shadowed"
        + (f"; workers follow within {REFRESH_S:g} s" if is_change else "")
    )
    output.finish({"namespace": name, **asdict(rules)})


def _check_name(name: str) -> None:
    """Refuse a name that no job could give."""
    try:
        TypeAdapter(Namespace).validate_python(name)
    except ValidationError as error:
        raise UsageProblem(f"NAME: {error.errors()[0]['msg']}") from None
