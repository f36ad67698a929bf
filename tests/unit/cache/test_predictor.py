"""What a match predictor lets pass, and which stored ones it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load, save

from cache.errors import PredictorRefused
from cache.predictor import Floats, MatchPredictor, Refusal, checksum, decode, encode
from cache.refit import Fitting, fit
from tests.integration.cache_harness import spec

DIMENSION = 16
SPEC = spec(embedding_dimension=DIMENSION)


def cluster(num: int, *, axis: int, seed: int, spread: float = 0.1) -> Floats:
    """Unit vectors about one axis."""
    noise = np.random.default_rng(seed).normal(size=(num, DIMENSION)) * spread
    vectors = noise + np.eye(DIMENSION)[axis]
    units: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units.astype(np.float32)


@pytest.fixture(scope="module")
def predictor() -> MatchPredictor:
    cached = np.concatenate([cluster(500, axis=0, seed=1), cluster(500, axis=1, seed=2)])
    return fit(cached, fingerprint=SPEC.fingerprint, fitting=Fitting(nu=0.1))


def test_prompts_like_the_cached_ones_pass_and_others_do_not(predictor: MatchPredictor) -> None:
    alike = [*cluster(100, axis=0, seed=3), *cluster(100, axis=1, seed=4)]
    unlike = cluster(100, axis=5, seed=5)
    assert np.mean([predictor.expects_match(vector) for vector in alike]) > 0.8
    assert not any(predictor.expects_match(vector) for vector in unlike)


def test_the_length_of_an_embedding_means_nothing(predictor: MatchPredictor) -> None:
    for vector in (*cluster(20, axis=0, seed=6), *cluster(20, axis=5, seed=7)):
        asked = [predictor.expects_match(list(vector * length)) for length in (0.01, 1, 100)]
        assert len(set(asked)) == 1


@pytest.mark.parametrize(
    "embedding",
    [[1.0], [0.0] * DIMENSION, [float("nan")] * DIMENSION, [float("inf")] * DIMENSION, ["x"], []],
)
def test_what_is_no_embedding_is_left_to_the_lookup(
    predictor: MatchPredictor, embedding: list[float]
) -> None:
    assert predictor.expects_match(embedding)


def test_the_same_prompts_give_the_same_bytes(predictor: MatchPredictor) -> None:
    cached = np.concatenate([cluster(500, axis=0, seed=1), cluster(500, axis=1, seed=2)])
    again = fit(cached, fingerprint=SPEC.fingerprint, fitting=Fitting(nu=0.1))
    assert encode(again) == encode(predictor)


def test_a_predictor_is_read_back_whole(predictor: MatchPredictor) -> None:
    data = encode(predictor)
    read = decode(data, sha256=checksum(data), spec=SPEC)
    vectors = cluster(50, axis=0, seed=8)
    assert np.array_equal(read.scores(vectors), predictor.scores(vectors))


def changed(name: str, change: Callable[[Floats], Floats]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        tensors = load(data)
        return save({**tensors, name: np.ascontiguousarray(change(tensors[name]))})

    return damage


def without(name: str) -> Callable[[bytes], bytes]:
    return lambda data: save({key: value for key, value in load(data).items() if key != name})


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], Refusal]] = {
    "empty": (lambda data: b"", Refusal.NOT_SAFETENSORS),
    "cut short": (lambda data: data[:-8], Refusal.NOT_SAFETENSORS),
    "a pickle": (lambda data: b"\x80\x04K\x01.", Refusal.NOT_SAFETENSORS),
    "a tensor less": (without("phases"), Refusal.WRONG_FORM),
    "no features": (changed("phases", lambda phases: phases[:0]), Refusal.WRONG_FORM),
    "weights of another length": (changed("weights", lambda w: w[:-1]), Refusal.WRONG_FORM),
    "another dtype": (changed("offset", lambda o: o.astype(np.float16)), Refusal.WRONG_FORM),
    "another dimension": (changed("projection", lambda p: p[:-1]), Refusal.WRONG_FORM),
    "another scope's": (changed("scope", lambda s: s + 1), Refusal.OTHER_SCOPE),
    "not finite": (changed("weights", lambda w: w * np.float32("nan")), Refusal.NOT_FINITE),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_whatever_else_the_bytes_are_is_refused(
    predictor: MatchPredictor, damage: Callable[[bytes], bytes], reason: Refusal
) -> None:
    data = damage(encode(predictor))
    with pytest.raises(PredictorRefused) as refused:
        decode(data, sha256=checksum(data), spec=SPEC)
    assert refused.value.reason == reason


def test_other_bytes_than_were_written_are_refused(predictor: MatchPredictor) -> None:
    data = encode(predictor)
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(PredictorRefused, match=Refusal.CHECKSUM_MISMATCH):
        decode(flipped, sha256=checksum(data), spec=SPEC)


@pytest.mark.parametrize("change", [{"revision": "2"}, {"namespace": "other"}])
def test_a_predictor_serves_no_other_scope(
    predictor: MatchPredictor, change: dict[str, str]
) -> None:
    other = spec(embedding_dimension=DIMENSION, **change)
    data = encode(predictor)
    with pytest.raises(PredictorRefused, match=Refusal.OTHER_SCOPE):
        decode(data, sha256=checksum(data), spec=other)
