"""Reach an S3 bucket by one URL: http[s]://ACCESS:SECRET@host:port/bucket."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from fleet.addresses import S3Address, parse_s3_url
from fleet.errors import NotReadyError

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 5.0


@contextmanager
def connected(address: S3Address) -> Iterator[Minio]:
    """A client without retries and with short time-outs; its sockets are closed at the end."""
    http = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        retries=urllib3.Retry(0),
    )
    try:
        yield Minio(
            address.endpoint,
            access_key=address.access_key,
            secret_key=address.secret_key,
            secure=address.is_secure,
            # Without a region the client asks for it first.
            region="us-east-1",
            http_client=http,
        )
    finally:
        http.clear()


def probe(url: str) -> None:
    """Create the bucket if absent; put, get and delete an object. Raises NotReadyError."""
    address = parse_s3_url(url)
    key, body = f".probe/{secrets.token_hex(4)}", secrets.token_bytes(8)
    try:
        with connected(address) as client:
            if not client.bucket_exists(address.bucket):
                client.make_bucket(address.bucket)
            client.put_object(address.bucket, key, io.BytesIO(body), len(body))
            if _read(client, address.bucket, key) != body:
                raise NotReadyError("an object that was put could not be read back")
            client.remove_object(address.bucket, key)
    except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise NotReadyError(_describe(error)) from error


def _describe(error: Exception) -> str:
    if isinstance(error, S3Error):
        return f"{error.code}: {error.message}"
    # urllib3 wraps what happened in a sentence about retries.
    return str(getattr(error, "reason", error))


def _read(client: Minio, bucket: str, key: str) -> bytes:
    response = client.get_object(bucket, key)
    try:
        return bytes(response.read())
    finally:
        response.close()
        response.release_conn()
