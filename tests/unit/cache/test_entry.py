from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from cache import errors
from cache.entry import MissReason, ScopeSpec, embedding_text
from cache.errors import CacheError, InvalidEmbedding
from cache.lookup import miss_reason

SPEC = ScopeSpec(
    namespace="default",
    model="tiny",
    revision="1",
    scheduler="ddim",
    scheduler_config="c0",
    num_inference_steps=50,
    height=32,
    width=32,
    latent_dtype="float32",
    embedder="tiny-clip",
    embedding_dimension=8,
    latent_shape=(4, 4, 4),
)


@pytest.mark.parametrize("name", [each.name for each in fields(ScopeSpec)])
def test_every_field_tells_scopes_apart(name: str) -> None:
    value: Any = getattr(SPEC, name)
    if isinstance(value, tuple):
        changed: Any = (1, *value)
    else:
        changed = value + 1 if isinstance(value, int) else value + "x"
    assert replace(SPEC, **{name: changed}).fingerprint != SPEC.fingerprint


def test_equal_specs_have_equal_fingerprints() -> None:
    assert replace(SPEC).fingerprint == SPEC.fingerprint
    assert len(SPEC.fingerprint) == 64


def test_fields_do_not_run_into_each_other() -> None:
    one, other = replace(SPEC, model="ab", revision="c"), replace(SPEC, model="a", revision="bc")
    assert one.fingerprint != other.fingerprint


def test_vectors_of_every_make_have_one_text() -> None:
    values = [0.5, -0.25, 2.0]
    expected = "[0.5,-0.25,2.0]"
    for vector in (values, tuple(values), torch.tensor(values), torch.tensor(values).half()):
        assert embedding_text(vector, 3) == expected
    assert embedding_text(torch.tensor(values).numpy(), 3) == expected


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0], "1 dimensions where the scope has 2"),
        ([0.0, 0.0], "zero"),
        ([1e-9, 0.0], "zero"),
        ([float("nan"), 1.0], "not finite"),
        ([float("-inf"), 1.0], "not finite"),
        ([1e6, 1.0], "too large"),
        (["a", "b"], "not a vector of numbers"),
        (None, "not a vector of numbers"),
        (1.0, "not a vector of numbers"),
        ([[1.0], [2.0]], "not a vector of numbers"),
        (torch.zeros(2, 2), "not a vector of numbers"),
    ],
)
def test_what_is_not_an_embedding(vector: Any, message: str) -> None:
    with pytest.raises(InvalidEmbedding, match=message):
        embedding_text(vector, 2)


def test_every_error_is_counted_under_a_reason() -> None:
    counted = {
        errors.BudgetExceeded(): MissReason.BUDGET_EXCEEDED,
        errors.TooBusy(): MissReason.TOO_BUSY,
        errors.InvalidEmbedding(): MissReason.INVALID_EMBEDDING,
        errors.DatabaseUnreachable("a", "b"): MissReason.DATABASE_UNREACHABLE,
        errors.ObjectMissing("key"): MissReason.OBJECT_MISSING,
        errors.ObjectStoreError(): MissReason.OBJECT_STORE_UNREACHABLE,
        errors.ObjectTruncated(1, 2): MissReason.OBJECT_TRUNCATED,
        errors.ChecksumMismatch(): MissReason.CHECKSUM_MISMATCH,
        errors.LatentsMismatch("a", "b"): MissReason.LATENTS_MISMATCH,
        errors.LatentsInvalid(): MissReason.INTERNAL,
        errors.CacheError(): MissReason.INTERNAL,
    }
    for error, reason in counted.items():
        assert miss_reason(error) is reason


def test_the_docstring_is_the_default_message_and_the_tree_is_whole() -> None:
    assert str(errors.TooBusy()) == "As many lookups are in progress as the cache allows."
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, CacheError):
            assert name in (errors.__doc__ or "")
            assert kind.__doc__
