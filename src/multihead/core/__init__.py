"""What attention is: the call, the formula, the statistics, and the arithmetic of softmax in parts."""

from multihead.core.call import (
    AttentionCall,
    as_autocast,
    as_mask,
    autocasts,
    check_heads,
    check_scores,
    nonfinite,
)
from multihead.core.heads import merge_heads, split_heads
from multihead.core.online import SoftmaxState, merge_outputs
from multihead.core.own import ColumnStatistic, MassOn, OwnAnswers, RowStatistic, WeightTile
from multihead.core.part import PartOfMask
from multihead.core.reference import Reference, reference
from multihead.core.statistics import (
    Measurements,
    Statistics,
    block_cells,
    block_means,
    power_of_two_edges,
)
from multihead.sizes import AXES, axes_of

__all__ = [
    "AXES",
    "AttentionCall",
    "ColumnStatistic",
    "MassOn",
    "Measurements",
    "OwnAnswers",
    "PartOfMask",
    "Reference",
    "RowStatistic",
    "SoftmaxState",
    "Statistics",
    "WeightTile",
    "as_autocast",
    "as_mask",
    "autocasts",
    "axes_of",
    "block_cells",
    "block_means",
    "check_heads",
    "check_scores",
    "merge_heads",
    "merge_outputs",
    "nonfinite",
    "power_of_two_edges",
    "reference",
    "split_heads",
]
