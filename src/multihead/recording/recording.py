"""What was seen: the narrow waist between those who observe attention and those who show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from multihead.conventions import checked_indices
from multihead.core import AXES, Measurements
from multihead.masks import Mask, Sizes


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One attention of one run of a model: what is needed to recompute any of its weights, and its statistics.

    ``heads`` and ``queries`` name what was kept, by the model's own numbers; the head and query axes of all tensors are
    those, in that order.
    """

    index: int
    """Place of this attention in the run, counting from 0."""
    name: str
    """Path of the module that computed it, as in ``named_modules()``."""
    host: str
    """Who computed it: ``multihead``, ``sdpa``, ``nn.MultiheadAttention`` or ``transformers``."""
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
    query_text: str = "text"
    key_text: str = "text"

    def __post_init__(self) -> None:
        checked_indices("heads", self.heads, self.sizes.heads)
        if self.queries is not None:
            checked_indices("queries", self.queries, self.sizes.queries)
        if (self.q is None) != (self.k is None):
            raise ValueError(f"layer {self.index}: q and k are kept together or not at all.")
        if self.k is not None:
            if len(self.kv_heads) != len(self.heads):
                raise ValueError(f"layer {self.index}: {len(self.heads)} heads but {len(self.kv_heads)} key heads named for them.")
            checked = [place for place in self.kv_heads if not 0 <= place < self.k.shape[1]]
            if checked:
                raise ValueError(f"layer {self.index}: key heads {checked} are not among the {self.k.shape[1]} that were kept.")

    @property
    def query_count(self) -> int:
        """How many queries were measured."""
        return self.sizes.queries if self.queries is None else len(self.queries)

    def axes(self, statistic: str) -> tuple[str, ...]:
        """The axes of one statistic's tensor, in words."""
        return AXES[statistic]


@dataclass(frozen=True, eq=False)
class Recording:
    """The attention of one run of a model, with the tokens it was about and where it comes from.

    Args:
        layers: what was seen, in the order of the run.
        texts: for each text by name (``text``; or ``source`` and ``target``) one list of tokens for each sequence of the batch.
        provenance: text to text: model, versions, date, selection.
    """

    layers: tuple[Layer, ...]
    texts: Mapping[str, Sequence[Sequence[str]]]
    provenance: Mapping[str, str] = field(default_factory=dict)
