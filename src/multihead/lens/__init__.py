"""The lens: what every head of a model attends to, seen while the model runs."""

from multihead.lens.estimate import Estimate, estimate
from multihead.lens.measuring import LayerCheck
from multihead.lens.observe import observe
from multihead.lens.profile import profile
from multihead.lens.profiles import LayerProfile, Profile
from multihead.lens.registered import register_transformers
from multihead.lens.seen import CheckReport, Seen
from multihead.lens.sizes import AttentionSizes
from multihead.lens.summaries import Summary
from multihead.lens.watch import SkippedAttentionWarning

__all__ = [
    "AttentionSizes",
    "CheckReport",
    "Estimate",
    "LayerCheck",
    "LayerProfile",
    "Profile",
    "Seen",
    "SkippedAttentionWarning",
    "Summary",
    "estimate",
    "observe",
    "profile",
    "register_transformers",
]
