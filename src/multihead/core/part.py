"""A mask as one sequence, some heads, some queries and some keys of an attention meet it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from multihead.masks import Mask, Sizes


@dataclass(frozen=True, eq=False)
class PartOfMask(Mask):
    """A mask asked by places among chosen heads, queries and keys, answered at the numbers of the whole attention."""

    mask: Mask
    sizes: Sizes
    """Of the whole attention."""
    item: int | None = None
    """The only sequence that is asked about; None for the whole batch."""
    heads: Int[Tensor, " head"] | None = None
    """The number of each head; None where these are the places, as for queries and keys."""
    queries: Int[Tensor, " query"] | None = None
    keys: Int[Tensor, " key"] | None = None

    def visible(
        self,
        queries: Int[Tensor, " query"],
        keys: Int[Tensor, " key"],
        sizes: Sizes,  # noqa: ARG002
    ) -> Bool[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]:
        """What the whole mask says about these."""
        queries = queries if self.queries is None else self.queries[queries]
        keys = keys if self.keys is None else self.keys[keys]
        return self._of_these(self.mask.visible(queries, keys, self.sizes))

    def key_range(self, first: int, last: int, sizes: Sizes) -> tuple[int, int]:
        """The whole mask's range, where places of keys are their numbers."""
        if self.keys is not None:
            return 0, sizes.keys
        if self.queries is not None:
            chosen = self.queries[first : last + 1]
            first, last = int(chosen.min()), int(chosen.max())
        return self.mask.key_range(first, last, self.sizes)

    def spans(self, queries: Int[Tensor, " query"], sizes: Sizes) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Those of the whole mask, where places of keys are their numbers."""
        if self.keys is not None:
            return None
        found = self.mask.spans(queries if self.queries is None else self.queries[queries], self.sizes)
        return None if found is None else (self._of_these(found[0]), self._of_these(found[1]))

    def _of_these(self, answer: Tensor) -> Tensor:
        """An answer of the whole mask, of the chosen sequence and heads."""
        if self.item is not None and answer.shape[0] != 1:
            answer = answer[self.item : self.item + 1]
        return answer if self.heads is None or answer.shape[1] == 1 else answer[:, self.heads]

    def tensors(self) -> Iterator[Tensor]:
        """Those of the whole mask."""
        yield from self.mask.tensors()

    def to(self, device: torch.device) -> "PartOfMask":
        """The same part of the whole mask on ``device``."""
        chosen = (None if some is None else some.to(device) for some in (self.heads, self.queries, self.keys))
        return PartOfMask(self.mask.to(device), self.sizes, self.item, *chosen)

    def check(self, sizes: Sizes) -> None:  # noqa: ARG002
        """Whether the whole mask fits the whole attention."""
        self.mask.check(self.sizes)

    def _without_first(self, dropped: int) -> "PartOfMask":
        """Fewer of the chosen keys; or of all, where places of keys are their numbers."""
        if self.keys is not None:
            return replace(self, keys=self.keys[dropped:])
        sizes = replace(self.sizes, keys=self.sizes.keys - dropped)
        return replace(self, mask=self.mask.without_first(dropped), sizes=sizes)
