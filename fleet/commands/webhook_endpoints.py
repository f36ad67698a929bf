"""`nirvana webhooks endpoints add, list, rotate, enable, remove`: where namespaces receive."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from fleet.commands.console import JsonOption, Output, UsageProblem
from fleet.commands.database import database_transaction
from producer.contract import GenerationJob, Webhook
from workers.delivery import registry
from workers.delivery.errors import UrlRefused
from workers.delivery.registry import EndpointRecord
from workers.delivery.webhooks import parse_url

app = typer.Typer(name="endpoints", help="Register where a namespace receives; rotate secrets.")

_SHOWN_MAX: Final = 1_000
_WIRE: Final = TypeAdapter(tuple[EndpointRecord, ...])

NameArgument = Annotated[str, typer.Argument(help="As jobs name it in webhook.endpoint.")]
NamespaceOption = Annotated[str, typer.Option(help="Whose endpoint it is.")]
UrlOption = Annotated[
    str | None,
    typer.Option(help="http(s)://...; without it only the secret is named, for urls of jobs."),
]


@app.command()
def add(
    name: NameArgument,
    url: UrlOption = None,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Register an endpoint, and show its secret this once."""
    output = Output(as_json=as_json)
    _check_names(namespace, name)
    with database_transaction() as connection:
        secret = registry.add(connection, namespace, name, url=_allowed(url))
    output.rich.print(f"{secret}\n\nKeep it: it is not shown again.")
    output.finish({"namespace": namespace, "name": name, "url": url, "secret": secret})


@app.command("list")
def list_endpoints(
    namespace: Annotated[str | None, typer.Option(help="Of this namespace only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the endpoints, without their secrets."""
    output = Output(as_json=as_json)
    with database_transaction() as connection:
        found = registry.read_endpoints(connection, namespace, limit=_SHOWN_MAX)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("namespace", "name", "url", "secrets", "state"):
        table.add_column(heading)
    for one in found:
        state = f"disabled: {one.disabled_reason}" if one.disabled_at else "enabled"
        num_secrets = "2, being rotated" if one.is_rotating else "1"
        table.add_row(one.namespace, one.name, one.url or "", num_secrets, state)
    output.rich.print(table)
    output.finish({"endpoints": _WIRE.dump_python(found, mode="json")})


@app.command()
def rotate(
    name: NameArgument,
    finish: Annotated[
        bool, typer.Option("--finish", help="Sign with the new secret alone from now on.")
    ] = False,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Sign with a new secret beside the old one; with --finish, without the old one."""
    output = Output(as_json=as_json)
    secret = None
    with database_transaction() as connection:
        if finish:
            registry.finish_rotation(connection, namespace, name)
        else:
            secret = registry.rotate(connection, namespace, name)
    if secret is None:
        output.rich.print("The old secret signs no more.")
    else:
        output.rich.print(
            f"{secret}\n\nKeep it: it is not shown again. Both secrets sign until\n"
            f"`nirvana webhooks endpoints rotate {name} --namespace {namespace} --finish`."
        )
    output.finish({"namespace": namespace, "name": name, "secret": secret})


@app.command()
def enable(
    name: NameArgument,
    url: Annotated[str | None, typer.Option(help="Send there from now on.")] = None,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Send to an endpoint again that has answered 410; or to another url."""
    output = Output(as_json=as_json)
    with database_transaction() as connection:
        registry.enable(connection, namespace, name, url=_allowed(url))
    output.rich.print(f"endpoint '{name}' in namespace '{namespace}' is enabled")
    output.finish({"namespace": namespace, "name": name, "url": url})


@app.command()
def remove(
    name: NameArgument, namespace: NamespaceOption = "default", as_json: JsonOption = False
) -> None:
    """Forget an endpoint and its secrets; what is still due to it fails."""
    output = Output(as_json=as_json)
    with database_transaction() as connection:
        registry.remove(connection, namespace, name)
    output.rich.print(f"endpoint '{name}' in namespace '{namespace}' is removed")
    output.finish({"namespace": namespace, "name": name})


def _check_names(namespace: str, name: str) -> None:
    """Refuse names that no job could give."""
    try:
        GenerationJob(prompt="-", namespace=namespace)
    except ValidationError as error:
        raise UsageProblem(f"--namespace: {error.errors()[0]['msg']}") from None
    try:
        Webhook(endpoint=name)
    except ValidationError as error:
        raise UsageProblem(f"NAME: {error.errors()[0]['msg']}") from None


def _allowed(url: str | None) -> str | None:
    """Refuse a url that no webhook could be sent to."""
    if url is None:
        return None
    try:
        Webhook(url=url)
        parse_url(url)
    except ValidationError as error:
        raise UsageProblem(f"--url: {error.errors()[0]['msg']}") from None
    except UrlRefused as error:
        raise UsageProblem(f"--url: {str(error).removeprefix('refused: ')}") from None
    return url
