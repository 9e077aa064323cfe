"""The layers: projections around one attention, and what they remember while decoding."""

from multihead.layer.attention import Attend, MultiHeadAttention
from multihead.layer.cache import Cache, FixedCache, GrowingCache, KeysValues, SlidingCache
from multihead.layer.conversions import from_transformers
from multihead.layer.latent import MultiHeadLatentAttention

__all__ = [
    "Attend",
    "Cache",
    "FixedCache",
    "GrowingCache",
    "KeysValues",
    "MultiHeadAttention",
    "MultiHeadLatentAttention",
    "SlidingCache",
    "from_transformers",
]
