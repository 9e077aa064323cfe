"""Queries and keys turned by their positions, so that a score depends on the distance between them.

Features are taken in pairs; pair i of a token at position p turns by the angle p · θᵢ. A feature y of the pair becomes
``y · cos + partner · sin``, where the angle of a pair's first feature counts negative: that is the whole rotation in
three operations over the heads.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.conventions import checked_count, checked_number, kind_of, mismatch, shape_of
from multihead.positions.base import Constant, Position, check_positions
from multihead.positions.frequencies import Scaling, geometric_frequencies
from multihead.precision import statistics_dtype


class Rotary(Position):
    r"""Rotary position embedding: each pair of features turns by an angle that grows with the position.

    .. math:: \begin{pmatrix} x_a' \\ x_b' \end{pmatrix} =
              \begin{pmatrix} \cos p\theta_i & -\sin p\theta_i \\ \sin p\theta_i & \cos p\theta_i \end{pmatrix}
              \begin{pmatrix} x_a \\ x_b \end{pmatrix}, \quad \theta_i = base^{-2i/d}

    Source: Su et al. 2021 (RoFormer), equations 15 and 34.

    Args:
        head_dim: features of each head.
        base: the wavelengths grow geometrically from 2π towards 2π · base tokens.
        fraction: share of the features that turn, the first ones; an even number of them. The rest stays as it is
            (GPT-NeoX, Phi).
        pairs: which features a, b make pair i of d: ``"halves"`` i and i + d/2 (Hugging Face's), ``"interleaved"`` 2i
            and 2i + 1 (the paper's; GPT-J, Cohere). A trained model needs its own.
        scaling: other frequencies for longer texts: :class:`Linear`, :class:`NTK`, :class:`YaRN`, :class:`Llama3`.

    Angles are computed in float32 (float64 for float64 features) from frequencies that stay exact when the module is
    turned to another type; the result has the features' type.

    Raises:
        TypeError: an argument of another kind.
        ValueError: sizes that do not pair up, or an unknown name for ``pairs``.

    >>> import torch
    >>> rotary = Rotary(4, base=100.0)
    >>> x = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 1, 3, 4)
    >>> rotary.turn(x, torch.arange(3)[None])[0, 0]
    tensor([[ 1.0000,  0.0000,  0.0000,  0.0000],
            [ 0.5403,  0.0000,  0.8415,  0.0000],
            [-0.4161,  0.0000,  0.9093,  0.0000]])
    """

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        fraction: float = 1.0,
        pairs: Literal["halves", "interleaved"] = "halves",
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        checked_count("head_dim", head_dim, 2)
        checked_number("base", base)
        if not 1 < base < math.inf:
            raise mismatch("base", base, "a number above 1", "the paper's is 10000.")
        if pairs not in ("halves", "interleaved"):
            raise mismatch("pairs", repr(pairs), "'halves' or 'interleaved'", "trained models mostly use halves.")
        if scaling is not None and not isinstance(scaling, Scaling):
            raise TypeError(f"scaling is {kind_of(scaling)}, expected one of Linear, NTK, YaRN and Llama3, or None.")
        self.head_dim, self.base, self.fraction, self.pairs = head_dim, base, fraction, pairs
        self.scaling = scaling
        self.turning = _even_share(head_dim, fraction)
        if scaling is None:
            self.frequencies, self.amplitude = geometric_frequencies(self.turning, base), 1.0
        else:
            self.frequencies, self.amplitude = scaling.frequencies(self.turning, base), scaling.amplitude
        backward = [-frequency for frequency in self.frequencies]
        signed = (
            [*backward, *self.frequencies]
            if pairs == "halves"
            else [sign for pair in zip(backward, self.frequencies, strict=True) for sign in pair]
        )
        self.signed_frequencies = Constant(signed)

    def check(self, num_heads: int, head_dim: int) -> None:  # noqa: ARG002
        """Raise ``ValueError`` unless heads have the features that this was made for."""
        if head_dim != self.head_dim:
            raise ValueError(
                f"Rotary({self.head_dim}) turns heads of {self.head_dim} features, but the layer's have {head_dim}: "
                f"make it Rotary({head_dim})."
            )

    def turn(
        self, x: Float[Tensor, "batch head token dim"], positions: Int[Tensor, "batch_or_1 token"]
    ) -> Float[Tensor, "batch head token dim"]:
        """Queries or keys, turned.

        Args:
            x: (batch, heads, tokens, head_dim).
            positions: (batch, tokens), or (1, tokens) for the whole batch.

        Raises:
            TypeError: positions that are no whole numbers.
            ValueError: shapes or devices that do not belong together.
        """
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x has shape {shape_of(x)}, expected (batch, heads, tokens, {self.head_dim}).")
        check_positions("positions", positions, x.shape[0], x.shape[2], x.device)
        dtype = statistics_dtype(x.dtype)
        angles = positions[:, None, :, None] * self.signed_frequencies.on(x.device, dtype)
        cos, sin = angles.cos(), angles.sin()
        if self.amplitude != 1.0:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        part = x if self.turning == self.head_dim else x[..., : self.turning]
        part = part.to(dtype)
        turned = torch.addcmul(part * cos, self._partners(part), sin).to(x.dtype)
        return turned if self.turning == self.head_dim else torch.cat((turned, x[..., self.turning :]), -1)

    def _partners(self, x: Tensor) -> Tensor:
        """The other feature of each feature's pair."""
        if self.pairs == "halves":
            return x.roll(self.turning // 2, -1)
        return torch.stack((x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    def extra_repr(self) -> str:
        """The sizes, as they appear in ``print(model)``."""
        options = f", fraction={self.fraction}" if self.fraction != 1.0 else ""
        options += f", scaling={self.scaling}" if self.scaling is not None else ""
        return f"{self.head_dim}, base={self.base}, pairs={self.pairs!r}{options}"


def _even_share(head_dim: int, fraction: float) -> int:
    """How many features ``fraction`` of ``head_dim`` is."""
    checked_number("fraction", fraction)
    share = head_dim * fraction
    if not 0 < fraction <= 1:
        raise mismatch("fraction", fraction, "a share of the features, above 0 and at most 1", "1 turns all of them.")
    if share < 1 or abs(share - 2 * round(share / 2)) > 1e-6:
        below, above = max(2, 2 * math.floor(share / 2)), 2 * math.floor(share / 2) + 2
        advice = f"try fraction={below}/{head_dim}" + (f" or {above}/{head_dim}" if below < above <= head_dim else "")
        came = f"{share:g} of head_dim={head_dim}"
        raise ValueError(f"{came} features would turn, expected an even number: pairs turn; {advice}.")
    return 2 * round(share / 2)
