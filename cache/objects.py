"""Objects by key in an S3 bucket, through the `minio` client."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self
from urllib.parse import unquote, urlsplit

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from cache.errors import InvalidUrl, ObjectMissing, ObjectStoreError

STATES_PREFIX = "states/"  # all keys of the cache; the sweep looks at no others
REGION = "us-east-1"  # without one the client asks the server first
SECONDS_PER_WEEK = 7 * 86_400  # the longest that S3 signs a URL for


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Address:
    """The parts of an S3 URL."""

    endpoint: str
    is_secure: bool
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a URL apart; raises InvalidUrl, which does not repeat it."""
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises where it is not a number
        except ValueError:
            raise InvalidUrl("http[s]://ACCESS:SECRET@host:port/bucket") from None
        bucket = parts.path.strip("/")
        is_complete = parts.hostname and parts.username and parts.password and bucket
        if parts.scheme not in {"http", "https"} or not is_complete or "/" in bucket:
            raise InvalidUrl("http[s]://ACCESS:SECRET@host:port/bucket")
        return cls(
            endpoint=parts.netloc.rpartition("@")[2],
            is_secure=parts.scheme == "https",
            access_key=unquote(parts.username or ""),
            secret_key=unquote(parts.password or ""),
            bucket=bucket,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedObject:
    """An object as a listing shows it."""

    key: str
    num_bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Bytes by key. Every method raises ObjectStoreError where the server is at fault."""

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write an object whole; one that exists is replaced."""

    def get(self, key: str) -> bytes:
        """Read an object whole; raises ObjectMissing."""

    def exists(self, key: str) -> bool:
        """Whether an object has that key."""

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        """Delete objects, absent ones too; answers the keys that remain, and why."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ListedObject]:
        """Objects under a prefix in the order of their keys' bytes, lazily."""

    def close(self) -> None:
        """Let go of connections; the next use opens new ones."""


class S3Objects:
    """A bucket of an S3 server (ObjectStore). Safe to share between threads."""

    def __init__(
        self, address: S3Address, *, connect_timeout_s: float = 1.0, read_timeout_s: float = 5.0
    ) -> None:
        self._address = address
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
            maxsize=32,
            # Once more for a connection that went stale in the pool; waiting longer is not ours.
            retries=urllib3.Retry(
                total=1, backoff_factor=0.05, status_forcelist=[500, 502, 503, 504]
            ),
        )
        self._client = self._client_for(address.endpoint, is_secure=address.is_secure)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """A store for http[s]://ACCESS:SECRET@host:port/bucket; opens no connection yet."""
        return cls(S3Address.parse(url))

    def ensure_bucket(self) -> None:
        """Create the bucket where it is absent."""
        with self._errors():
            if not self._client.bucket_exists(self._address.bucket):
                self._client.make_bucket(self._address.bucket)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write an object whole; one that exists is replaced."""
        with self._errors(key):
            self._client.put_object(
                self._address.bucket, key, io.BytesIO(data), len(data), content_type=content_type
            )

    def get(self, key: str) -> bytes:
        """Read an object whole; raises ObjectMissing."""
        with self._errors(key):
            response = self._client.get_object(self._address.bucket, key)
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def exists(self, key: str) -> bool:
        """Whether an object has that key."""
        try:
            with self._errors(key):
                self._client.stat_object(self._address.bucket, key)
        except ObjectMissing:
            return False
        return True

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        """Delete objects, absent ones too, a thousand a request; answers those that remain."""
        with self._errors():
            # The client deletes only while its answer is iterated.
            failures = self._client.remove_objects(
                self._address.bucket, [DeleteObject(key) for key in keys]
            )
            return {
                failure.name or "": failure.message or failure.code
                for failure in failures
                if failure.code != "NoSuchKey"
            }

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ListedObject]:
        """Objects under a prefix in the order of their keys' bytes, lazily."""
        with self._errors():
            for found in self._client.list_objects(
                self._address.bucket, prefix, recursive=True, start_after=start_after or None
            ):
                yield ListedObject(
                    key=found.object_name or "",
                    num_bytes=found.size or 0,
                    modified_at=found.last_modified or datetime.now(UTC),
                )

    def presigned_url(self, key: str, *, expires_s: float, public_url: str | None = None) -> str:
        """A URL that reads the object without credentials, for a week at most; asks no server.

        `public_url` (http[s]://host:port) is where readers reach the bucket, if not where we do:
        the host is part of what is signed.
        """
        parts = urlsplit(public_url or "")
        client = self._client
        if public_url:
            client = self._client_for(parts.netloc, is_secure=parts.scheme == "https")
        expires = timedelta(seconds=min(max(expires_s, 1), SECONDS_PER_WEEK))
        return str(client.presigned_get_object(self._address.bucket, key, expires=expires))

    def close(self) -> None:
        """Close the sockets; the next use opens new ones."""
        self._http.clear()

    def _client_for(self, endpoint: str, *, is_secure: bool) -> Minio:
        return Minio(
            endpoint,
            access_key=self._address.access_key,
            secret_key=self._address.secret_key,
            secure=is_secure,
            region=REGION,
            http_client=self._http,
        )

    @contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        """Turn what the client raises into our errors."""
        try:
            yield
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise ObjectMissing(key) from error
            raise ObjectStoreError(f"{error.code}: {error.message}") from error
        except (MinioException, HTTPError, OSError, ValueError) as error:
            raise ObjectStoreError(f"{self._address.endpoint}: {error}") from error
