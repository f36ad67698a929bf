from __future__ import annotations

import io
from contextlib import closing

import psycopg
import redis

from fleet.addresses import parse_s3_url
from fleet.services import s3


def test_the_database_is_empty_owned_and_has_pgvector(database_url: str) -> None:
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE TABLE t (v halfvec(3))")
        connection.execute("INSERT INTO t VALUES ('[1,2,3]')")
        row = connection.execute("SELECT v <=> '[1,2,3]' FROM t").fetchone()
    assert row == (0.0,)


def test_the_broker_index_is_empty_and_durable(broker_url: str) -> None:
    with closing(redis.Redis.from_url(broker_url)) as client:
        assert client.dbsize() == 0
        assert client.config_get("append*")["appendonly"] == "yes"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_the_bucket_is_empty_and_holds_objects(s3_url: str) -> None:
    address = parse_s3_url(s3_url)
    with s3.connected(address) as client:
        assert list(client.list_objects(address.bucket)) == []
        client.put_object(address.bucket, "a/b", io.BytesIO(b"x"), 1)
        names = [o.object_name for o in client.list_objects(address.bucket, recursive=True)]
        assert names == ["a/b"]
