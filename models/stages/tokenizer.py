"""Train the byte-pair vocabulary on the captions."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator

import numpy as np

from models.libraries import transformers
from models.networks import MAX_TOKENS
from models.scenes import draw_caption, draw_scene
from models.stages.workspace import Workspace

logger = logging.getLogger(__name__)

VOCABULARY_SIZE = 1018
NUM_CAPTIONS = 20_000
END_OF_WORD = "</w>"


def run(work: Workspace) -> None:
    """Make the tokenizer's folder, or copy it from the model that the run starts from."""
    if work.tokenizer_folder.exists():
        return
    if work.init_from:
        shutil.copytree(work.init_from / "tokenizer", work.tokenizer_folder)
        return

    vocabulary, merges = learn(_captions(work.config.data.seed))
    tokenizer = transformers().CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(work.tokenizer_folder)
    logger.info("learned a vocabulary of %d", len(tokenizer))


def learn(captions: Iterator[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn CLIP's lower-cased byte-pair encoding; every byte stays a token of its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*characters, *(c + END_OF_WORD for c in characters)]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _captions(seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for _ in range(NUM_CAPTIONS):
        yield draw_caption(draw_scene(rng), rng).text
