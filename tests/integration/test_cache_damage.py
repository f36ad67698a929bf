"""What an S3 server gives back: bit for bit, or a miss with its reason, never an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch

from cache import codec
from cache.approximate import ApproximateCache
from cache.entry import MissReason, StateKind
from cache.lookup import Found
from cache.objects import S3Objects
from cache.store import NewState
from migrations import migrate
from tests.integration.cache_harness import QUERY, SHAPE, entry, running_cache, spec

DTYPES = {"float32": torch.int32, "float16": torch.int16, "bfloat16": torch.int16}
DAMAGE: dict[MissReason, list[Callable[[bytes], bytes | None]]] = {
    MissReason.CHECKSUM_MISMATCH: [
        lambda data: bytes([data[0] ^ 128]) + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: codec.encode(torch.ones(SHAPE)).data,
    ],
    MissReason.OBJECT_TRUNCATED: [
        lambda data: data[:-8],
        lambda data: b"",
        lambda data: codec.encode(torch.ones(4, 4, 8)).data,  # of another shape
        lambda data: codec.encode(torch.ones(SHAPE, dtype=torch.float16)).data,
    ],
    MissReason.OBJECT_MISSING: [lambda data: None],
}


@pytest.fixture
def objects(s3_url: str) -> Iterator[S3Objects]:
    with closing(S3Objects.from_url(s3_url)) as store:
        yield store


@pytest.fixture
def cache(database_url: str, objects: S3Objects) -> Iterator[ApproximateCache]:
    migrate.upgrade(database_url)
    with running_cache(database_url, objects) as cache:
        yield cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(cache: ApproximateCache, dtype: str) -> None:
    """Also those of zeros, infinities and numbers that are none."""
    kept = torch.randn(SHAPE).to(getattr(torch, dtype))
    kept.view(-1)[:5] = torch.tensor([-0.0, math.inf, -math.inf, math.nan, 1e-45])
    scope = spec(latent_dtype=dtype)
    state = NewState(kind=StateKind.INTERMEDIATE, k=20, latents=kept)
    assert cache.store(scope, entry(states=(state,))) is not None
    found = cache.find(scope, QUERY)
    assert isinstance(found, Found)
    assert found.latents.dtype == kept.dtype
    assert torch.equal(found.latents.view(DTYPES[dtype]), kept.view(DTYPES[dtype]))


def test_every_damage_is_a_miss_once_with_its_reason(
    cache: ApproximateCache, objects: S3Objects
) -> None:
    for reason, damages in DAMAGE.items():
        for damage in damages:
            cache.store(spec(), entry(ks=(25,)))
            (key,) = [each.key for each in objects.list("states/")]
            damaged = damage(objects.get(key))
            objects.delete_many([key])
            if damaged is not None:
                objects.put(key, damaged)
            outcome = cache.find(spec(), QUERY)
            assert not isinstance(outcome, Found)
            assert outcome.reason is reason
            assert cache.find(spec(), QUERY).reason is MissReason.NONE_SIMILAR  # type: ignore[union-attr]
            objects.delete_many([key])
    counts = cache.counts()
    assert {name: num for name, num in counts.items() if name.startswith("miss_")} == {
        **{f"miss_{reason}": len(damages) for reason, damages in DAMAGE.items()},
        "miss_none_similar": sum(map(len, DAMAGE.values())),
    }


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(4, 4, 5), torch.ones(SHAPE, dtype=torch.float16)],
    ids=["shape", "dtype"],
)
def test_whole_latents_of_another_form_are_a_miss(
    cache: ApproximateCache, wrong: torch.Tensor
) -> None:
    state = NewState(kind=StateKind.INTERMEDIATE, k=25, latents=wrong)
    cache.store(spec(), entry(states=(state,)))
    outcome = cache.find(spec(), QUERY)
    assert not isinstance(outcome, Found)
    assert outcome.reason is MissReason.LATENTS_MISMATCH
    assert cache.counts()["miss_latents_mismatch"] == 1
