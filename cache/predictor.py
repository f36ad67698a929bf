"""The match predictor: whether a prompt is like those cached, asked before the lookup.

NIRVANA (NSDI'24) fits a one-class SVM on the embeddings of the cached prompts; what it calls unlike
them goes straight to noise. Here the kernel is approximated by random Fourier features (Rahimi and
Recht, 2007), so that asking it is one product of a vector and a matrix. It is fitted in
`cache.refit` and kept as safetensors; numpy alone is needed to ask it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cache.entry import Embedding, ScopeSpec
from cache.errors import PredictorRefused

Floats = NDArray[np.float32]

_NAMES: Final = frozenset({"projection", "phases", "weights", "offset", "scope"})


class Refusal(StrEnum):
    """Why a stored predictor is not used."""

    CHECKSUM_MISMATCH = "checksum_mismatch"  # other bytes than were written
    NOT_SAFETENSORS = "not_safetensors"
    OTHER_SCOPE = "other_scope"  # fitted on the prompts of another
    WRONG_FORM = "wrong_form"  # other tensors, shapes or dtypes
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchPredictor:
    """A one-class SVM of a scope, of dimension d, over m random Fourier features."""

    #: SHA-256 of the scope's spec, in hexadecimal.
    fingerprint: str
    projection: Floats = field(repr=False)  #: [d, m]
    phases: Floats = field(repr=False)  #: [m]
    weights: Floats = field(repr=False)  #: [m]
    offset: float

    def expects_match(self, embedding: Embedding) -> bool:
        """Whether a prompt is like those that the predictor was fitted on.

        True for what is no vector of its dimension: the lookup says what is wrong with that.
        """
        try:
            vector = np.asarray(embedding, dtype=np.float32)
        except (TypeError, ValueError):
            return True
        if vector.shape != self.projection.shape[:1]:
            return True
        # A vector of zeros, or not finite, has no score; written so that NaN passes.
        return not self.scores(vector[None])[0] < 0

    def scores(self, vectors: Floats) -> Floats:
        """[n] for [n, d]: 0 or above within what it was fitted on."""
        features = fourier_features(unit_rows(vectors), self.projection, self.phases)
        found: Floats = features @ self.weights - np.float32(self.offset)
        return found


def unit_rows(vectors: Floats) -> Floats:
    """[n, d], each of length 1: only directions are compared."""
    with np.errstate(invalid="ignore", divide="ignore"):
        units: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def fourier_features(units: Floats, projection: Floats, phases: Floats) -> Floats:
    """[n, m]: their products approximate the RBF kernel (scikit-learn's RBFSampler)."""
    with np.errstate(invalid="ignore"):
        features: Floats = np.cos(units @ projection + phases)
    return features * np.float32(np.sqrt(2 / len(phases)))


def checksum(data: bytes) -> str:
    """What a row says of its bytes."""
    return hashlib.sha256(data).hexdigest()


def encode(predictor: MatchPredictor) -> bytes:
    """Write a predictor as safetensors."""
    return save(
        {
            "projection": predictor.projection,
            "phases": predictor.phases,
            "weights": predictor.weights,
            "offset": np.asarray([predictor.offset], dtype=np.float32),
            "scope": np.frombuffer(bytes.fromhex(predictor.fingerprint), dtype=np.uint8),
        }
    )


def decode(data: bytes, *, sha256: str, spec: ScopeSpec) -> MatchPredictor:
    """Read a scope's predictor; raises PredictorRefused for whatever else the bytes are."""
    if checksum(data) != sha256:
        raise PredictorRefused(Refusal.CHECKSUM_MISMATCH)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise PredictorRefused(Refusal.NOT_SAFETENSORS) from error
    _require_form(tensors, dimension=spec.embedding_dimension)
    if tensors["scope"].tobytes().hex() != spec.fingerprint:
        raise PredictorRefused(Refusal.OTHER_SCOPE)
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise PredictorRefused(Refusal.NOT_FINITE)
    return MatchPredictor(
        fingerprint=spec.fingerprint,
        projection=tensors["projection"],
        phases=tensors["phases"],
        weights=tensors["weights"],
        offset=float(tensors["offset"][0]),
    )


def _require_form(tensors: dict[str, NDArray[Any]], *, dimension: int) -> None:
    if tensors.keys() != _NAMES:
        raise PredictorRefused(Refusal.WRONG_FORM)
    num_features = tensors["phases"].size
    form = {
        "projection": ((dimension, num_features), np.float32),
        "phases": ((num_features,), np.float32),
        "weights": ((num_features,), np.float32),
        "offset": ((1,), np.float32),
        "scope": ((32,), np.uint8),
    }
    for name, (shape, dtype) in form.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype or not num_features:
            raise PredictorRefused(Refusal.WRONG_FORM)
