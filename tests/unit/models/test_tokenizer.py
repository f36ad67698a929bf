"""The vocabulary learned from captions."""

from __future__ import annotations

import numpy as np

from models.libraries import transformers
from models.scenes import draw_caption, draw_scene
from models.stages.tokenizer import VOCABULARY_SIZE, learn


def test_frequent_words_become_one_token_and_unknown_ones_still_have_tokens() -> None:
    rng = np.random.default_rng(0)
    captions = [draw_caption(draw_scene(rng), rng).text for _ in range(3000)]
    vocabulary, merges = learn(iter(captions))
    tokenizer = transformers().CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)
    assert len(tokenizer) <= VOCABULARY_SIZE + 512
    assert tokenizer.tokenize("a Large flat banana") == [
        "a</w>", "large</w>", "flat</w>", "banana</w>",
    ]  # fmt: skip
    unknown = tokenizer("zebra, quince é")["input_ids"]
    assert unknown.count(tokenizer.unk_token_id) == 1  # the end, which is the same token
    longest = max(len(ids) for ids in tokenizer(captions)["input_ids"])
    assert longest <= 32
