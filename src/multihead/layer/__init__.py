"""The layer: projections around one attention, and what it remembers while decoding."""

from multihead.layer.attention import Attend, MultiHeadAttention
from multihead.layer.cache import Cache, FixedCache, GrowingCache, KeysValues, SlidingCache

__all__ = ["Attend", "Cache", "FixedCache", "GrowingCache", "KeysValues", "MultiHeadAttention", "SlidingCache"]
