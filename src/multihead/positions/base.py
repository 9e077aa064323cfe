"""What the position schemes share: their base, positions that fit, and numbers that no conversion rounds."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import device as Device
from torch import dtype as Dtype

from multihead.biases import Bias
from multihead.conventions import kind_of, shape_of
from multihead.precision import statistics_dtype


class Position(nn.Module):
    """How a layer's attention learns where its tokens stand: the base of all schemes, which by itself says nothing.

    A layer calls ``check`` once, ``turn`` on its queries and on its keys (after their norm, if they have one), and adds
    ``bias_between`` to the scores.

    >>> import torch
    >>> keys = torch.zeros(2, 8, 10, 64)
    >>> Position().turn(keys, torch.arange(10)[None]) is keys
    True
    """

    def check(self, num_heads: int, head_dim: int) -> None:
        """Raise ``ValueError`` where a layer of these sizes cannot be served."""

    def turn(
        self,
        x: Float[Tensor, "batch head token dim"],
        positions: Int[Tensor, "batch_or_1 token"],  # noqa: ARG002
    ) -> Float[Tensor, "batch head token dim"]:
        """Queries or keys as they are at their positions."""
        return x

    def bias_between(
        self,
        queries: Int[Tensor, "#batch query"] | None = None,  # noqa: ARG002
        keys: Int[Tensor, "#batch key"] | None = None,  # noqa: ARG002
    ) -> Bias | None:
        """What is added to the scores between queries and keys at these positions.

        Both None: they are where the masks place them, a query at its index plus Lk - Lq and a key at its index.
        """
        return None


class Constant(nn.Module):
    """Numbers that go with a module to its device and stay exact, whatever type the module is turned into.

    A plain buffer would be rounded by ``.to(torch.bfloat16)`` and ``half()``, and a rounded frequency turns distant
    tokens by wrong angles. It would also stay empty after ``to_empty``. Here the truth is ``numbers``; the tensor is a
    copy at hand.

    Args:
        numbers: Python numbers, floats in double precision.
        dtype: of the tensor: ``torch.float32`` or an integer type.
    """

    kept: Tensor

    def __init__(self, numbers: Sequence[int] | Sequence[float], dtype: Dtype = torch.float32) -> None:
        super().__init__()
        self.numbers = tuple(numbers)
        self.register_buffer("kept", torch.tensor(self.numbers, dtype=dtype), persistent=False)

    def on(self, device: Device, dtype: Dtype) -> Tensor:
        """The numbers as a tensor there: the one at hand, or a new one where that is of another device or type."""
        if self.kept.device == device and self.kept.dtype == dtype:
            return self.kept
        return torch.tensor(self.numbers, dtype=dtype, device=device)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        dtype = statistics_dtype(self.kept.dtype) if self.kept.is_floating_point() else self.kept.dtype
        self.kept = torch.tensor(self.numbers, dtype=dtype, device=self.kept.device)
        return self

    def extra_repr(self) -> str:
        """How many numbers."""
        return f"{len(self.numbers)} numbers"


def check_positions(name: str, positions: Tensor, batch: int, tokens: int, device: Device) -> None:
    """Raise unless ``positions`` are whole numbers on ``device``, one for each token of each sequence, or of all.

    Raises:
        TypeError: no tensor, or not of int32 or int64: shorter types would overflow in differences.
        ValueError: another shape or device.
    """
    if not isinstance(positions, Tensor):
        raise TypeError(f"{name} are {kind_of(positions)}, expected a tensor: torch.arange({tokens})[None].")
    if positions.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} have dtype {positions.dtype}, expected torch.int64 or torch.int32.")
    if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != tokens:
        raise ValueError(
            f"{name} have shape {shape_of(positions)}, expected ({batch}, {tokens}), "
            f"or (1, {tokens}) for the whole batch."
        )
    if positions.device != device:
        raise ValueError(f"{name} are on {positions.device}, expected {device}: move them with .to({str(device)!r}).")
