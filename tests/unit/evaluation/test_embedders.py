from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluation.embedders import Ngrams, Vectors, load_embedder
from evaluation.errors import EmbedderUnavailable, OptionInvalid
from evaluation.vectors import embed_all

SHIPPED_CLIP = Path(__file__).resolve().parents[3] / "models" / "small" / "clip"
PROMPTS = ["a red fox in the snow", "a red fox in snow", "the stock exchange at noon"]


@pytest.mark.parametrize("name", ["ngrams", f"clip:{SHIPPED_CLIP}"])
def test_similar_prompts_are_nearer_and_vectors_are_of_unit_length(name: str) -> None:
    embedder = load_embedder(name)
    vectors = embedder.embed(PROMPTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2]
    np.testing.assert_allclose(embedder.embed(PROMPTS[::-1])[::-1], vectors, atol=1e-5)
    assert embedder.caveat


@pytest.mark.parametrize("name", ["clip", "clip:", "word2vec", "ngrams:x"])
def test_unknown_embedders_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(OptionInvalid, match="expected minilm, ngrams or clip:FOLDER"):
        load_embedder(name)


def test_a_folder_without_a_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbedderUnavailable, match="no CLIP folder"):
        load_embedder(f"clip:{tmp_path}")


class Counting:
    """Counts what it is asked to embed."""

    id = "counting"
    caveat = ""

    def __init__(self) -> None:
        self.num_embedded = 0
        self._ngrams = Ngrams()

    def embed(self, prompts: Sequence[str]) -> Vectors:
        self.num_embedded += len(prompts)
        return self._ngrams.embed(prompts)


def test_a_prompt_is_embedded_once_and_a_longer_log_adds_to_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("evaluation.vectors.CHUNK", 4)
    prompts = [f"prompt {number % 10}" for number in range(30)]
    embedder, done = Counting(), list[int]()
    vectors = embed_all(embedder, prompts, cache_dir=tmp_path, progress=done.append)
    assert (embedder.num_embedded, sum(done)) == (10, 30)
    np.testing.assert_array_equal(vectors[0], vectors[10])
    embed_all(embedder, prompts, cache_dir=tmp_path)
    assert embedder.num_embedded == 10
    # The first two chunks of four are as they were, the last one is not.
    embed_all(embedder, [*prompts, "another"], cache_dir=tmp_path)
    assert embedder.num_embedded == 10 + 3
