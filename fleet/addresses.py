"""The three services' URLs, taken apart without any client library."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit


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
    expected = "http[s]://ACCESS:SECRET@host:port/bucket"
    parts = _split(url, {"http", "https"}, expected)
    bucket = parts.path.strip("/")
    if not (parts.username and parts.password and bucket) or "/" in bucket:
        raise ValueError(f"expected {expected}")
    return S3Address(
        endpoint=parts.netloc.rpartition("@")[2],
        is_secure=parts.scheme == "https",
        access_key=unquote(parts.username or ""),
        secret_key=unquote(parts.password or ""),
        bucket=bucket,
    )


def check_database_url(url: str) -> str:
    """Return the URL; raises ValueError with the expected form."""
    expected = "postgresql://user:password@host:port/database"
    parts = _split(url, {"postgresql", "postgres", "postgresql+psycopg"}, expected)
    if not parts.path.strip("/"):
        raise ValueError(f"expected {expected}")
    return url


def check_broker_url(url: str) -> str:
    """Return the URL; raises ValueError with the expected form."""
    _split(url, {"redis", "rediss"}, "redis[s]://:password@host:port/0")
    return url


def check_s3_url(url: str) -> str:
    """Return the URL; raises ValueError with the expected form."""
    parse_s3_url(url)
    return url


def without_credentials(url: str) -> str:
    """Scheme, host, port and path: what may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _split(url: str, schemes: set[str], expected: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        is_valid = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"expected {expected}")
    return parts
