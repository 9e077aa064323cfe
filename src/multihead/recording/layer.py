"""One attention of one run: its statistics, and what recomputes its weights."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from multihead.core import Measurements
from multihead.masks import Mask
from multihead.recording.outline import LayerOutline
from multihead.recording.shapes import STATISTICS, check_forms, form_of
from multihead.sizes import axes_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(LayerOutline):
    """One attention of one run of a model: what is needed to recompute any of its weights, and its statistics.

    Weights that someone already had are in ``weights`` instead, and there is nothing to recompute them from.

    ``heads`` and ``queries`` name what was kept, by the model's own numbers; the head and query axes of all tensors are
    those, in that order.

    Raises:
        ValueError: numbers, shapes or a mask that do not belong together; the message names the layer.
    """

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

    def _check(self) -> None:
        super()._check()
        if self.mask is not None:
            self.mask.check(self.sizes)
        forms = {name: form_of(tensor) for name, tensor in self.tensors().items()}
        check_forms(forms, sizes=self.sizes, heads=len(self.heads), queries=self.query_count, kv_heads=self.kv_heads)

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

    def __repr__(self) -> str:
        kept, every = len(self.heads), self.sizes.heads
        heads = f"{every} heads" if kept == every else f"{kept} of {every} heads"
        return f"Layer {self.index} ({self.name}): {heads}, {self.query_count} queries × {self.sizes.keys} keys"
