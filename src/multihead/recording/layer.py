"""One attention of one run: its statistics, and what recomputes its weights."""

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from multihead.conventions import checked_indices
from multihead.core import Measurements, axes_of
from multihead.masks import Mask, Sizes
from multihead.recording.shapes import STATISTICS, Form, check_forms


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One attention of one run of a model: what is needed to recompute any of its weights, and its statistics.

    Weights that someone already had are in ``weights`` instead, and there is nothing to recompute them from.

    ``heads`` and ``queries`` name what was kept, by the model's own numbers; the head and query axes of all tensors are
    those, in that order.

    Raises:
        ValueError: numbers, shapes or a mask that do not belong together; the message names the layer.
    """

    index: int
    """The number of this attention in order of first appearance, counting from 0."""
    name: str
    """Path of the module that computed it, as in ``named_modules()``."""
    host: str
    """Who computed it: ``multihead``, ``sdpa``, ``nn.MultiheadAttention`` or ``transformers``; or ``given``."""
    sizes: Sizes
    """Of the attention as the model computed it: batch, all heads, all queries, all keys."""
    heads: tuple[int, ...]
    queries: tuple[int, ...] | None = None
    """Measured query indices; None for all of them."""
    kv_heads: tuple[int, ...] = ()
    """For each of ``heads``, the place of its key head on the head axis of ``k``."""
    scale: float = 1.0
    softcap: float | None = None
    mask: Mask | None = None
    """For all heads and queries of the model, if it depends on them."""
    bias: Float[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"] | None = None
    """Of the kept heads and queries."""
    sinks: Float[Tensor, " head"] | None = None
    """Of the kept heads."""
    statistics: Measurements = field(default_factory=Measurements)
    q: Float[Tensor, "batch head query dim"] | None = None
    k: Float[Tensor, "batch kv_head key dim"] | None = None
    weights: Float[Tensor, "batch head query key"] | None = None
    """In place of q and k, where only the weights themselves are known: see :meth:`Recording.from_weights`."""
    query_text: str = "text"
    key_text: str = "text"

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"layer {self.index}: {error}") from error

    def _check(self) -> None:
        checked_indices("heads", self.heads, self.sizes.heads)
        if self.queries is not None:
            checked_indices("queries", self.queries, self.sizes.queries)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} is no finite number.")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap={self.softcap} is no positive number: None for no cap.")
        if self.mask is not None:
            self.mask.check(self.sizes)
        forms: dict[str, Form] = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors().items()}
        check_forms(forms, sizes=self.sizes, heads=len(self.heads), queries=self.query_count, kv_heads=self.kv_heads)

    @property
    def query_count(self) -> int:
        """How many queries were measured."""
        return self.sizes.queries if self.queries is None else len(self.queries)

    def axes(self, statistic: str) -> tuple[str, ...]:
        """The axes of one statistic's tensor, in words."""
        return axes_of(statistic)

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """The shape of ``q``, ``k``, ``weights`` or a statistic, None where it was not kept; of a file's, unread."""
        tensor = getattr(self, name) if name in ("q", "k", "weights") else getattr(self.statistics, name)
        return None if tensor is None else tuple(tensor.shape)

    @property
    def recomputes(self) -> bool:
        """Whether it holds what weights are recomputed from: q, k and the log-sum-exp."""
        return all(self.shape_of(name) is not None for name in ("q", "k", "lse"))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor it holds but the mask's, by name: ``q``, ``k``, ``weights``, ``sinks``, ``statistics.lse``."""
        held = {name: getattr(self, name) for name in ("q", "k", "weights", "bias", "sinks")}
        found = {name: tensor for name, tensor in held.items() if tensor is not None}
        return found | {STATISTICS + name: tensor for name, tensor in self.statistics.named().items()}

    def place_of_query(self, query: int, tokens: int) -> int:
        """Place of a query's token in its text of ``tokens`` tokens.

        In self-attention over a cache the queries are the last of the keys, so query 0 is not token 0.
        """
        cached = self.query_text == self.key_text and tokens != self.sizes.queries
        return query + max(self.sizes.offset, 0) if cached else query

    def query_of_place(self, place: int, tokens: int) -> int | None:
        """The query that stands at a place in its text, None where there is none."""
        query = place - self.place_of_query(0, tokens)
        return query if 0 <= query < self.sizes.queries else None

    def __repr__(self) -> str:
        kept, every = len(self.heads), self.sizes.heads
        heads = f"{every} heads" if kept == every else f"{kept} of {every} heads"
        return f"Layer {self.index} ({self.name}): {heads}, {self.query_count} queries × {self.sizes.keys} keys"
