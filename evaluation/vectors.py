"""Embeddings of a log, kept on disk in chunks: a longer log of the same start adds to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.embedders import Embedder

CHUNK: Final = 2_048  # prompts in a file

HalfVectors = NDArray[np.float16]
Progress = Callable[[int], None]  # told how many more rows are done


def embed_all(
    embedder: Embedder,
    prompts: Sequence[str],
    *,
    cache_dir: Path,
    progress: Progress = lambda _: None,
) -> HalfVectors:
    """Return [n, dim] in half precision, as pgvector's halfvec holds them.

    Each distinct prompt is embedded once. An interrupted run goes on where it was.
    """
    distinct = list(dict.fromkeys(prompts))
    chunks = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
    table = np.concatenate([_chunk(embedder, chunk, cache_dir, progress) for chunk in chunks])
    progress(len(prompts) - len(distinct))
    rows = {prompt: row for row, prompt in enumerate(distinct)}
    taken: HalfVectors = table[np.fromiter((rows[p] for p in prompts), np.int64, len(prompts))]
    return taken


def _chunk(
    embedder: Embedder, prompts: Sequence[str], cache_dir: Path, progress: Progress
) -> HalfVectors:
    path = cache_dir / "embeddings" / f"{_key(embedder, prompts)}.npy"
    if path.is_file():
        vectors: HalfVectors = np.load(path)
    else:
        vectors = embedder.embed(prompts).astype(np.float16)
        save_array(path, vectors)
    progress(len(prompts))
    return vectors


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    with unfinished.open("wb") as file:
        np.save(file, array)
    unfinished.rename(path)


def _key(embedder: Embedder, prompts: Sequence[str]) -> str:
    digest = hashlib.sha256(embedder.id.encode())
    for prompt in prompts:
        digest.update(b"\0" + prompt.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:40]
