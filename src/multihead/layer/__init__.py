"""The layer: projections around one attention."""

from multihead.layer.attention import Attend, MultiHeadAttention

__all__ = ["Attend", "MultiHeadAttention"]
