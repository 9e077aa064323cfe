"""What attention is: the call, the formula, the statistics, and the arithmetic of softmax in parts."""

from multihead.core.call import AttentionCall, as_mask, check_heads, nonfinite
from multihead.core.heads import merge_heads, split_heads
from multihead.core.online import SoftmaxState, merge_outputs
from multihead.core.part import PartOfMask
from multihead.core.reference import Reference, reference
from multihead.core.statistics import AXES, Measurements, Statistics, block_cells, power_of_two_edges

__all__ = [
    "AXES",
    "AttentionCall",
    "Measurements",
    "PartOfMask",
    "Reference",
    "SoftmaxState",
    "Statistics",
    "as_mask",
    "block_cells",
    "check_heads",
    "merge_heads",
    "merge_outputs",
    "nonfinite",
    "power_of_two_edges",
    "reference",
    "split_heads",
]
