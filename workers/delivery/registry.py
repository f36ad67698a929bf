"""The registered endpoints: where a namespace receives, and the secrets that sign for it."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from producer.verification import SECRET_PREFIX
from workers.delivery.errors import EndpointExists, EndpointUnknown, RotationState
from workers.delivery.webhooks import parse_url
from workers.tables import endpoints

SECRET_BYTES: Final = 32  # Standard Webhooks: 24 to 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecord:
    """An endpoint as an operator may see it: without its secrets."""

    namespace: str
    name: str
    url: str | None  # None: it only names a secret, for urls that jobs give
    is_rotating: bool  # two secrets, and two signatures on every webhook
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime


def add(connection: Connection, namespace: str, name: str, *, url: str | None) -> str:
    """Register an endpoint; returns its secret, which nothing shows again.

    Raises EndpointExists, or UrlRefused.
    """
    if url is not None:
        parse_url(url)
    secret = new_secret()
    row = {"namespace": namespace, "name": name, "url": url, "secrets": [secret]}
    try:
        connection.execute(insert(endpoints).values(row))
    except IntegrityError:
        raise EndpointExists(namespace, name) from None
    return secret


def read_endpoints(
    connection: Connection, namespace: str | None, *, limit: int
) -> tuple[EndpointRecord, ...]:
    """The endpoints of one namespace, or of all, by name."""
    row = endpoints.c
    statement = select(endpoints).order_by(row.namespace, row.name).limit(limit)
    if namespace is not None:
        statement = statement.where(row.namespace == namespace)
    return tuple(_to_record(found) for found in connection.execute(statement))


def rotate(connection: Connection, namespace: str, name: str) -> str:
    """Begin to sign with a new secret beside the old one; returns the new one.

    Raises EndpointUnknown, or RotationState where a rotation is already under way.
    """
    if len(_secrets(connection, namespace, name)) > 1:
        raise RotationState(f"endpoint {_where(namespace, name)} is being rotated; finish it first")
    secret = new_secret()
    connection.execute(
        update(endpoints)
        .where(_is(namespace, name))
        .values(secrets=func.array_prepend(secret, endpoints.c.secrets))
    )
    return secret


def finish_rotation(connection: Connection, namespace: str, name: str) -> None:
    """Sign with the new secret alone.

    Raises EndpointUnknown, or RotationState where none is under way.
    """
    if len(_secrets(connection, namespace, name)) == 1:
        raise RotationState(f"endpoint {_where(namespace, name)} is not being rotated")
    newest = endpoints.c.secrets[1:1]
    connection.execute(update(endpoints).where(_is(namespace, name)).values(secrets=newest))


def enable(connection: Connection, namespace: str, name: str, *, url: str | None = None) -> None:
    """Send to an endpoint again that answered 410, at another url if one is given.

    Raises EndpointUnknown, or UrlRefused.
    """
    changes: dict[str, Any] = {"disabled_at": None, "disabled_reason": None}
    if url is not None:
        parse_url(url)
        changes["url"] = url
    changed = connection.execute(update(endpoints).where(_is(namespace, name)).values(changes))
    if not changed.rowcount:
        raise EndpointUnknown(namespace, name)


def remove(connection: Connection, namespace: str, name: str) -> None:
    """Forget an endpoint: what is still due to it fails. Raises EndpointUnknown."""
    if not connection.execute(delete(endpoints).where(_is(namespace, name))).rowcount:
        raise EndpointUnknown(namespace, name)


def new_secret() -> str:
    """Draw a secret, `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _is(namespace: str, name: str) -> ColumnElement[bool]:
    return (endpoints.c.namespace == namespace) & (endpoints.c.name == name)


def _where(namespace: str, name: str) -> str:
    return f"'{name}' in namespace '{namespace}'"


def _secrets(connection: Connection, namespace: str, name: str) -> list[str]:
    """Lock the endpoint and read its secrets, the newest first; raises EndpointUnknown."""
    statement = select(endpoints.c.secrets).where(_is(namespace, name)).with_for_update()
    found = connection.scalar(statement)
    if found is None:
        raise EndpointUnknown(namespace, name)
    return list(found)


def _to_record(row: Row[Any]) -> EndpointRecord:
    return EndpointRecord(
        namespace=row.namespace,
        name=row.name,
        url=row.url,
        is_rotating=len(row.secrets) > 1,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        created_at=row.created_at,
    )
