"""Splitting a layer's features into heads, and merging them again."""

from jaxtyping import Float
from torch import Tensor

from multihead.conventions import divisors, in_words


def split_heads(x: Float[Tensor, "batch token width"], num_heads: int) -> Float[Tensor, "batch head token dim"]:
    """(batch, tokens, heads · dim) to (batch, heads, tokens, dim), without copying.

    Head h is features h·dim to (h + 1)·dim.

    Raises:
        ValueError: the last axis is not a multiple of ``num_heads``.
    """
    batch, tokens, width = x.shape
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"{width} features do not split into num_heads={num_heads}: try {in_words(divisors(width), 'or')} heads."
        )
    return x.view(batch, tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Float[Tensor, "batch head token dim"]) -> Float[Tensor, "batch token width"]:
    """(batch, heads, tokens, dim) to (batch, tokens, heads · dim): the Concat of Vaswani et al. 2017, section 3.2.2."""
    return x.transpose(1, 2).flatten(2)
