"""The three services' URLs, taken apart without any client library."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Addresses:
    """Where a fleet's clients and workers find the services; passwords included."""

    database_url: str
    broker_url: str
    s3_url: str

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL with the driver's name."""
        return "postgresql+psycopg://" + self.database_url.partition("://")[2]

    def environment(self) -> dict[str, str]:
        """The NIRVANA_ variables that say the same."""
        return {
            "NIRVANA_DATABASE_URL": self.database_url,
            "NIRVANA_BROKER_URL": self.broker_url,
            "NIRVANA_S3_URL": self.s3_url,
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class S3Address:
    """The parts of an S3 URL."""

    # host[:port]
    endpoint: str
    is_secure: bool
    access_key: str
    secret_key: str
    bucket: str


def parse_s3_url(url: str) -> S3Address:
    """Take an S3 URL apart; raises ValueError with the expected form."""
    parts = urlsplit(url)
    bucket = parts.path.strip("/")
    is_complete = parts.hostname and parts.username and parts.password and bucket
    if parts.scheme not in {"http", "https"} or not is_complete or "/" in bucket:
        raise ValueError("expected http[s]://ACCESS:SECRET@host:port/bucket")
    return S3Address(
        endpoint=parts.netloc.rpartition("@")[2],
        is_secure=parts.scheme == "https",
        access_key=unquote(parts.username or ""),
        secret_key=unquote(parts.password or ""),
        bucket=bucket,
    )


def check_database_url(url: str) -> str:
    """Return the URL; raises ValueError with the expected form."""
    parts = urlsplit(url)
    schemes = {"postgresql", "postgres", "postgresql+psycopg"}
    if parts.scheme not in schemes or not parts.hostname or not parts.path.strip("/"):
        raise ValueError("expected postgresql://user:password@host:port/database")
    return url


def check_broker_url(url: str) -> str:
    """Return the URL; raises ValueError with the expected form."""
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss", "valkey"} or not parts.hostname:
        raise ValueError("expected redis://:password@host:port/0")
    return url


def check_s3_url(url: str) -> str:
    """Return the URL; raises ValueError with the expected form."""
    parse_s3_url(url)
    return url


def without_credentials(url: str) -> str:
    """Scheme, host, port and path: what may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
