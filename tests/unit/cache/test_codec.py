from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from cache.codec import decode, encode
from cache.errors import ChecksumMismatch, LatentsInvalid, LatentsMismatch, ObjectTruncated

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def decoded(data: bytes, latents: torch.Tensor, **changes: object) -> torch.Tensor:
    """What comes of an object whose row describes `latents`."""
    encoded = encode(latents)
    expected = {
        "sha256": encoded.sha256,
        "num_bytes": encoded.num_bytes,
        "dtype": str(latents.dtype).removeprefix("torch."),
        "shape": tuple(latents.shape),
    }
    return decode(data, **{**expected, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 4, 8, 8), (16, 128)], ids=str)
def test_a_round_trip_is_exact(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    latents = torch.randn(shape).to(dtype)
    latents.view(-1)[0] = float("nan")
    latents.view(-1)[1] = -0.0
    data = encode(latents).data
    found = decoded(data, latents)
    assert found.dtype == dtype
    integers = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(found.view(integers), latents.view(integers))


def test_views_and_gradients_are_stored_as_their_values() -> None:
    latents = torch.randn(8, 4, requires_grad=True)
    found = decoded(encode(latents.t()).data, latents.t())
    assert torch.equal(found, latents.detach().t())
    assert not found.requires_grad


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(place: int, bit: int) -> None:
    latents = torch.arange(16.0)
    damaged = bytearray(encode(latents).data)
    damaged[place % len(damaged)] ^= 1 << bit
    with pytest.raises(ChecksumMismatch):
        decoded(bytes(damaged), latents)


@pytest.mark.parametrize("cut", [1, 8, 70, 10**6])
def test_a_truncated_object_is_noticed(cut: int) -> None:
    latents = torch.arange(16.0)
    data = encode(latents).data
    with pytest.raises(ObjectTruncated) as caught:
        decoded(data[: max(0, len(data) - cut)], latents)
    assert caught.value.expected_bytes == len(data)


def test_a_longer_object_is_noticed() -> None:
    latents = torch.arange(16.0)
    with pytest.raises(ObjectTruncated):
        decoded(encode(latents).data + b"x", latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 8)}, r"holds float32\[16\] where float32\[2, 8\] was expected"),
        ({"dtype": "float16"}, r"holds float32\[16\] where float16\[16\] was expected"),
    ],
)
def test_another_form_is_noticed(changes: dict[str, object], message: str) -> None:
    latents = torch.arange(16.0)
    with pytest.raises(LatentsMismatch, match=message):
        decoded(encode(latents).data, latents, **changes)


def test_any_shape_where_none_is_expected() -> None:
    latents = torch.arange(16.0)
    assert torch.equal(decoded(encode(latents).data, latents, shape=None), latents)


@pytest.mark.parametrize(
    "data", [b"", b"not safetensors at all", save({"other": torch.zeros(1)})], ids=len
)
def test_an_object_that_is_something_else(data: bytes) -> None:
    with pytest.raises(LatentsInvalid):
        decode(
            data,
            sha256=hashlib.sha256(data).hexdigest(),
            num_bytes=len(data),
            dtype="float32",
        )


def test_every_damage_is_one_kind_of_error() -> None:
    for error in (ObjectTruncated, ChecksumMismatch, LatentsMismatch):
        assert issubclass(error, LatentsInvalid)
