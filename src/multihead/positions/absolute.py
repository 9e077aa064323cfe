"""Positions that are added to the token embeddings, once, before the first layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import device as Device
from torch import dtype as Dtype

from multihead.conventions import checked_count, mismatch, shape_of
from multihead.positions.base import Constant, check_positions
from multihead.positions.frequencies import geometric_frequencies
from multihead.precision import statistics_dtype


class Sinusoidal(nn.Module):
    r"""Sines and cosines of the position, added to the embeddings; nothing is learned and no length is the last.

    .. math:: PE_{p, 2i} = \sin(p / 10000^{2i/d}), \quad PE_{p, 2i+1} = \cos(p / 10000^{2i/d})

    Source: Vaswani et al. 2017, section 3.5.

    Args:
        embed_dim: features of a token, d; an even number.

    Raises:
        TypeError: ``embed_dim`` is no whole number.
        ValueError: it is odd or below 2.

    >>> import torch
    >>> Sinusoidal(4)(torch.zeros(1, 3, 4))[0]
    tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
            [ 0.8415,  0.5403,  0.0100,  0.9999],
            [ 0.9093, -0.4161,  0.0200,  0.9998]])
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        checked_count("embed_dim", embed_dim, 2)
        if embed_dim % 2:
            raise mismatch("embed_dim", embed_dim, "an even number", "each sine has its cosine.")
        self.embed_dim = embed_dim
        self.frequencies = Constant(geometric_frequencies(embed_dim, 10_000.0))

    def forward(
        self, x: Float[Tensor, "batch token embed"], positions: Int[Tensor, "batch_or_1 token"] | None = None
    ) -> Float[Tensor, "batch token embed"]:
        """Embeddings that know their positions.

        Args:
            x: (batch, tokens, embed_dim).
            positions: (batch, tokens), or (1, tokens) for the whole batch; None: from 0.

        Raises:
            TypeError: positions that are no whole numbers.
            ValueError: shapes or devices that do not belong together.
        """
        places = _places(x, self.embed_dim, positions)
        angles = places[..., None] * self.frequencies.on(x.device, statistics_dtype(x.dtype))
        return (x + torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)).to(x.dtype)

    def extra_repr(self) -> str:
        """The number of features."""
        return f"{self.embed_dim}"


class Learned(nn.Module):
    """A learned vector for each position, added to the embeddings.

    Source: Gehring et al. 2017, section 3.1; Devlin et al. 2019 (BERT).

    Args:
        max_length: positions that there are.
        embed_dim: features of a token.
        device, dtype: of the vectors.

    The vectors start with a standard deviation of 0.02, as in BERT and GPT-2.

    Raises:
        TypeError: an argument that is no whole number.
        ValueError: an argument below 1.

    >>> import torch
    >>> Learned(512, 64)(torch.zeros(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    def __init__(
        self, max_length: int, embed_dim: int, *, device: Device | str | None = None, dtype: Dtype | None = None
    ) -> None:
        super().__init__()
        checked_count("max_length", max_length)
        checked_count("embed_dim", embed_dim)
        self.max_length, self.embed_dim = max_length, embed_dim
        self.embedding = nn.Embedding(max_length, embed_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with a standard deviation of 0.02."""
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch token embed"], positions: Int[Tensor, "batch_or_1 token"] | None = None
    ) -> Float[Tensor, "batch token embed"]:
        """Embeddings that know their positions.

        Args:
            x: (batch, tokens, embed_dim).
            positions: (batch, tokens), or (1, tokens) for the whole batch; None: from 0.

        Raises:
            TypeError: positions that are no whole numbers.
            ValueError: shapes or devices that do not belong together; more tokens than positions; a position outside
                0 to max_length - 1 (while a graph is compiled, exported or captured nobody can look at numbers: there
                torch's own embedding refuses, when it runs).
        """
        places = _places(x, self.embed_dim, positions)
        if positions is None:
            if x.shape[1] > self.max_length:
                raise ValueError(self._too_far(f"{x.shape[1]} tokens"))
        elif _can_be_read(positions):
            outside = positions[(positions < 0) | (positions >= self.max_length)]
            if outside.numel():
                raise ValueError(self._too_far(f"position {int(outside[0])}"))
        return (x + self.embedding(places)).to(x.dtype)

    def _too_far(self, came: str) -> str:
        return (
            f"{came} came, but Learned knows the positions 0 to {self.max_length - 1}: "
            "shorten the text, or learn with a larger max_length."
        )


def _places(x: Tensor, embed_dim: int, positions: Tensor | None) -> Tensor:
    """The positions of the tokens of ``x``, counted from 0 where none are given; checked."""
    if x.ndim != 3 or x.shape[-1] != embed_dim:
        raise ValueError(f"x has shape {shape_of(x)}, expected (batch, tokens, {embed_dim}).")
    if positions is None:
        return torch.arange(x.shape[1], device=x.device)[None]
    check_positions("positions", positions, x.shape[0], x.shape[1], x.device)
    return positions


def _can_be_read(tensor: Tensor) -> bool:
    """Whether its numbers exist and may be looked at now."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
