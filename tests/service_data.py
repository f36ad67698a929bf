"""Leave a mark in each of the three services, and find it again."""

from __future__ import annotations

import io
from contextlib import closing

import psycopg
import redis

from fleet.addresses import Addresses, parse_s3_url
from fleet.services import s3

MARK = b"still here"


def write_marks(addresses: Addresses) -> None:
    """One row, one key, one object. The key is on disk a second later (appendfsync everysec)."""
    with psycopg.connect(addresses.database_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE mark (value bytea)")
        connection.execute("INSERT INTO mark VALUES (%s)", [MARK])
    with closing(redis.Redis.from_url(addresses.broker_url)) as client:
        client.set("mark", MARK)
    address = parse_s3_url(addresses.s3_url)
    with s3.connected(address) as store:
        store.put_object(address.bucket, "a/mark", io.BytesIO(MARK), len(MARK))


def read_marks(addresses: Addresses) -> None:
    """Assert that all three are there."""
    with psycopg.connect(addresses.database_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT value FROM mark").fetchone() == (MARK,)
    with closing(redis.Redis.from_url(addresses.broker_url)) as client:
        assert client.get("mark") == MARK
    address = parse_s3_url(addresses.s3_url)
    with s3.connected(address) as store:
        response = store.get_object(address.bucket, "a/mark")
        try:
            assert response.read() == MARK
        finally:
            response.close()
            response.release_conn()
