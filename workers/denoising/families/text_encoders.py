"""The text encoders that the families share: CLIP, with and without a projection, and T5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ClipTextEncoder:
    """A CLIP text encoder with its tokenizer; texts are cut or padded to `num_tokens`."""

    def __init__(self, tokenizer: Any, encoder: Any, *, num_tokens: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self.num_tokens: int = num_tokens or tokenizer.model_max_length

    @property
    def is_projected(self) -> bool:
        """Whether pooled vectors lie in the space that CLIP shares with images."""
        return hasattr(self._encoder, "text_projection")

    @property
    def pooled_dim(self) -> int:
        config = self._encoder.config
        dim = config.projection_dim if self.is_projected else config.hidden_size
        assert isinstance(dim, int)
        return dim

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Token ids and attention mask [B, num_tokens], on the encoder's device."""
        return _tokenize(self._tokenizer, texts, self.num_tokens).to(self._encoder.device)

    def encode(self, texts: Sequence[str], *, hidden_states: bool = False) -> Any:
        """transformers' output over the padded tokens, as diffusers' pipelines call it."""
        tokens = self.tokenize(texts)
        # Stable Diffusion's pipeline heeds this option; no published model of the others sets it.
        uses_mask = getattr(self._encoder.config, "use_attention_mask", False)
        return self._encoder(
            tokens.input_ids,
            attention_mask=tokens.attention_mask if uses_mask else None,
            output_hidden_states=hidden_states,
        )

    def encode_penultimate(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The last but one layer's states [B, num_tokens, dim], and the pooled vectors [B, dim]."""
        encoded = self.encode(texts, hidden_states=True)
        return encoded.hidden_states[-2], self.pooled(encoded)

    def pooled(self, encoded: Any) -> Tensor:
        """One vector [B, pooled_dim] a text, of what `encode` returned."""
        pooled: Tensor = encoded.text_embeds if self.is_projected else encoded.pooler_output
        return pooled


class T5TextEncoder:
    """A T5 encoder with its tokenizer; texts are cut or padded to `num_tokens`, without a mask."""

    def __init__(self, tokenizer: Any, encoder: Any, *, num_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self.num_tokens = num_tokens

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The last layer's states [B, num_tokens, dim]."""
        tokens = _tokenize(self._tokenizer, texts, self.num_tokens).to(self._encoder.device)
        states: Tensor = self._encoder(tokens.input_ids)[0]
        return states


def _tokenize(tokenizer: Any, texts: Sequence[str], num_tokens: int) -> Any:
    return tokenizer(
        list(texts),
        padding="max_length",
        max_length=num_tokens,
        truncation=True,
        return_tensors="pt",
    )
