"""What every object store must do; run on the real S3 server and on the stand-in."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError

import pytest

from cache.errors import InvalidUrl, ObjectMissing, ObjectStoreError
from cache.objects import ObjectStore, S3Address, S3Objects
from tests.conformance.memory_objects import MemoryObjects


@pytest.fixture(params=["s3", "memory"])
def objects(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryObjects()
        return
    store = S3Objects.from_url(request.getfixturevalue("s3_url"))
    yield store
    store.close()


@pytest.fixture
def s3(s3_url: str) -> Iterator[S3Objects]:
    store = S3Objects.from_url(s3_url)
    yield store
    store.close()


@pytest.mark.parametrize("num_bytes", [0, 1, 65_536, 6 * 1024**2])
def test_bytes_come_back_as_they_were_put(objects: ObjectStore, num_bytes: int) -> None:
    data = bytes(range(256)) * (num_bytes // 256) + bytes(num_bytes % 256)
    objects.put("states/1/a.safetensors", data)
    assert objects.get("states/1/a.safetensors") == data


def test_a_second_put_replaces(objects: ObjectStore) -> None:
    objects.put("a", b"first")
    objects.put("a", b"second")
    assert objects.get("a") == b"second"


def test_a_missing_object_is_named(objects: ObjectStore) -> None:
    with pytest.raises(ObjectMissing) as caught:
        objects.get("states/none")
    assert caught.value.key == "states/none"


def test_exists(objects: ObjectStore) -> None:
    objects.put("a/b", b"x")
    assert objects.exists("a/b")
    assert not objects.exists("a/c")


def test_deleting_takes_absent_keys_in_its_stride(objects: ObjectStore) -> None:
    objects.put("a", b"x")
    objects.put("b", b"x")
    assert objects.delete_many(["a", "never-there"]) == {}
    assert not objects.exists("a")
    assert objects.exists("b")
    assert objects.delete_many(["a"]) == {}


def test_deleting_more_than_one_request_holds(objects: ObjectStore) -> None:
    keys = [f"many/{number:04}" for number in range(1_100)]
    for key in keys[:40] + keys[-40:]:
        objects.put(key, b"x")
    assert objects.delete_many(iter(keys)) == {}
    assert list(objects.list("many/")) == []


def test_deleting_nothing(objects: ObjectStore) -> None:
    assert objects.delete_many([]) == {}


def test_a_listing_is_in_the_order_of_bytes_and_under_its_prefix(objects: ObjectStore) -> None:
    keys = [f"states/{scope}/{name}" for scope in (1, 10, 2) for name in ("ff/k", "0a/k", "0a/j")]
    for key in [*keys, "images/x", "statesx"]:
        objects.put(key, b"xy")
    listed = list(objects.list("states/"))
    assert [each.key for each in listed] == sorted(keys)
    assert {each.num_bytes for each in listed} == {2}
    for each in listed:
        assert abs(each.modified_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_listing_goes_on_after_a_key(objects: ObjectStore) -> None:
    for key in ("s/a", "s/b", "s/c/d", "s/c/e"):
        objects.put(key, b"x")
    assert [each.key for each in objects.list("s/", start_after="s/b")] == ["s/c/d", "s/c/e"]


def test_a_listing_of_more_than_a_page(s3: S3Objects) -> None:
    keys = [f"page/{number:04}" for number in range(1_005)]
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(s3.put, keys, [b"x"] * len(keys)))
    assert [each.key for each in s3.list("page/")] == keys


def test_a_wrong_secret_is_refused_and_not_shown(s3_url: str) -> None:
    store = S3Objects.from_url(s3_url.replace("@", "wrong@"))
    with pytest.raises(ObjectStoreError) as caught:
        store.get("a")
    assert not isinstance(caught.value, ObjectMissing)
    secret = s3_url.rpartition("@")[0].rpartition(":")[2]
    assert secret not in str(caught.value)
    store.close()


def test_a_missing_bucket_is_not_a_missing_object(s3_url: str) -> None:
    store = S3Objects.from_url(s3_url.rpartition("/")[0] + "/no-such-bucket-here")
    with pytest.raises(ObjectStoreError, match="NoSuchBucket") as caught:
        store.get("a")
    assert not isinstance(caught.value, ObjectMissing)
    store.close()


def test_ensure_bucket_creates_it_once(s3_url: str) -> None:
    store = S3Objects.from_url(s3_url + "-second")
    store.ensure_bucket()
    store.ensure_bucket()
    store.put("a", b"x")
    assert store.delete_many(["a"]) == {}
    store._client.remove_bucket(s3_url.rpartition("/")[2] + "-second")
    store.close()


def test_a_server_that_is_not_there() -> None:
    store = S3Objects.from_url("http://key:hunter2@127.0.0.1:9/bucket")
    for call in (
        lambda: store.put("a", b"x"),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.delete_many(["a"]),
        lambda: list(store.list("a")),
    ):
        with pytest.raises(ObjectStoreError, match=r"127\.0\.0\.1:9") as caught:
            call()
        assert "hunter2" not in str(caught.value)
    store.close()


def test_a_presigned_url_reads_without_credentials_and_only_that(s3: S3Objects) -> None:
    s3.put("images/a.png", b"picture", content_type="image/png")
    url = s3.presigned_url("images/a.png", expires_s=60)
    with urllib.request.urlopen(url) as response:
        assert response.read() == b"picture"
        assert response.headers["content-type"] == "image/png"
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(url.replace("a.png", "b.png"))
    assert caught.value.code == 403
    caught.value.close()


def test_a_presigned_url_for_a_public_address(s3: S3Objects) -> None:
    url = s3.presigned_url("a.png", expires_s=60, public_url="https://img.example.org")
    assert url.startswith("https://img.example.org/")


def test_a_presigned_url_lasts_a_week_at_most(s3: S3Objects) -> None:
    assert "X-Amz-Expires=604800" in s3.presigned_url("a", expires_s=10**9)


def test_the_parts_of_a_url() -> None:
    address = S3Address.parse("https://AK:s%2Fk%40@s3.example.org:9000/bucket")
    assert address.endpoint == "s3.example.org:9000"
    assert address.is_secure
    assert (address.access_key, address.secret_key) == ("AK", "s/k@")
    assert address.bucket == "bucket"
    assert "s/k@" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://a:hunter2@h/b",
        "http://h:9/bucket",
        "http://a:hunter2@h:9",
        "http://a:hunter2@h:9/b/c",
        "http://a:hunter2@h:port/b",
        "http://a@h:9/b",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidUrl, match="ACCESS:SECRET@host:port/bucket") as caught:
        S3Address.parse(url)
    assert "hunter2" not in str(caught.value)
