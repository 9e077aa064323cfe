"""From tokens to features."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from multihead.conventions import shape_of
from multihead.models.config import Config
from multihead.positions import Learned, Sinusoidal

__all__ = ["Embedding"]


class Embedding(nn.Module):
    """A table of features for each token, and where the configuration says so, of each place.

    Args:
        config: sizes and parts.
        vocab_size: tokens.
        tokens: a table to share; None: one of its own.

    The table starts as N(0, 1/d), so that with the factor √d features, and with tied embeddings logits, have variance
    1: as in the paper's own code (tensor2tensor), which the paper does not say.
    """

    def __init__(self, config: Config, vocab_size: int, tokens: nn.Embedding | None = None) -> None:
        super().__init__()
        self.scale = math.sqrt(config.embed_dim) if config.scale_embeddings else 1.0
        if tokens is None:
            tokens = nn.Embedding(vocab_size, config.embed_dim)
            nn.init.normal_(tokens.weight, std=config.embed_dim**-0.5)
        self.tokens = tokens
        self.places = _places(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch read"] | None = None, *, before: int = 0
    ) -> Float[Tensor, "batch token embed"]:
        """The features of each token, (batch, tokens, embed_dim).

        Args:
            tokens: (batch, tokens).
            valid: (batch, before + tokens), True at real tokens, which are counted to find places; None: all are real.
            before: how many tokens came before these.

        Raises:
            ValueError: a token is not in the vocabulary.
        """
        x = self.tokens(tokens) * self.scale
        if self.places is not None:
            length = tokens.shape[1]
            if valid is None:
                positions = torch.arange(before, before + length, device=tokens.device)[None]
            else:
                positions = (valid.cumsum(1)[:, before:] - 1).clamp_min(0)
            x = self.places(x, positions)
        return self.dropout(x)


def check_tokens(name: str, tokens: Tensor, vocab_size: int) -> None:
    """Raise for tokens that no table has a row for.

    Raises:
        ValueError: the shape is not (batch, tokens), or a token is out of range.
        TypeError: they are no whole numbers.
    """
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {tokens.dtype}, expected integers: the numbers of tokens.")
    if tokens.ndim != 2:
        raise ValueError(f"{name} has shape {shape_of(tokens)}, expected (batch, tokens).")
    # elsewhere than on a CPU the answer would make the program wait for the device in every step
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
        check_range(name, tokens, vocab_size)


def check_range(name: str, tokens: Tensor, vocab_size: int) -> None:
    """Raise ``ValueError`` for tokens out of range."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} holds token {low if low < 0 else high}, expected 0 to {vocab_size - 1}: the vocabulary has "
            f"{vocab_size} tokens."
        )


def check_valid(name: str, valid: Tensor | None, tokens: Tensor) -> None:
    """Raise for a padding mask that does not fit its tokens.

    Raises:
        TypeError: it is not boolean.
        ValueError: its shape is another.
    """
    if valid is None:
        return
    if valid.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {valid.dtype}, expected torch.bool, True at real tokens: pass valid.bool().")
    if valid.shape != tokens.shape:
        raise ValueError(f"{name} has shape {shape_of(valid)}, expected that of its tokens, {shape_of(tokens)}.")


def _places(config: Config) -> nn.Module | None:
    match config.position:
        case "sinusoidal":
            return Sinusoidal(config.embed_dim)
        case "learned":
            assert config.max_length is not None  # noqa: S101
            return Learned(config.max_length, config.embed_dim)
        case _:
            return None
