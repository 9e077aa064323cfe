"""The lens: what every head of a model attends to, seen while the model runs."""

from multihead.lens.measuring import LayerCheck
from multihead.lens.observe import observe
from multihead.lens.seen import CheckReport, Seen
from multihead.lens.watch import SkippedAttentionWarning

__all__ = ["CheckReport", "LayerCheck", "Seen", "SkippedAttentionWarning", "observe"]
