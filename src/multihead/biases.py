"""What is added to the scores when it need not be a tensor: a bias computed from the places of queries and keys.

The counterpart of :mod:`multihead.masks` for numbers: a kernel asks for the part that it needs and never holds the
whole Lq × Lk. A plain tensor does where one exists already.
"""

import abc
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.masks import Sizes

__all__ = ["Bias"]


class Bias(abc.ABC):
    """Numbers to add to the scores, asked part by part; a frozen dataclass whose tensors are fields."""

    @abc.abstractmethod
    def values(
        self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"], sizes: Sizes
    ) -> Float[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]:
        """The bias between the chosen queries and keys, differentiable in ``tensors()``."""

    def check(self, sizes: Sizes) -> None:  # noqa: B027
        """Raise ``ValueError`` where this bias cannot belong to an attention of these sizes."""

    @abc.abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """The tensors that it is computed from."""

    @abc.abstractmethod
    def over(self, tensors: Iterator[Tensor]) -> "Bias":
        """The same bias computed from other tensors, which come in the order of ``tensors()``."""

    def without_first(self, dropped: int) -> "Bias":  # noqa: ARG002
        """The same bias where the first ``dropped`` keys are no longer there.

        Itself, as long as places are counted from the last key, which is where the last query stands.
        """
        return self

    def dense(self, sizes: Sizes) -> Float[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]:
        """All of it as one tensor.

        Memory: O(Lq · Lk).
        """
        device = next(self.tensors()).device
        queries, keys = (torch.arange(size, device=device) for size in (sizes.queries, sizes.keys))
        return self.values(queries, keys, sizes)
