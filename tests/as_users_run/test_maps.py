import pytest
import torch

from multihead import inspect
from multihead.masks import Sizes
from multihead.recording import Layer
from multihead.recording.maps import LayerMap


def test_other_poolings():
    q = torch.randn(1, 1, 5, 8)
    _, seen = inspect(q, q, q)
    kept = {"heads": (0,), "kv_heads": (0,), "q": q, "k": q, "statistics": seen}
    found = LayerMap(Layer(index=0, name="attn", host="multihead", sizes=Sizes(1, 1, 5, 5), **kept))
    for ask in (found.tile, found.cell):
        with pytest.raises(ValueError, match="pooling='sum' is neither 'mean' nor 'max'"):
            ask(0, 0, 0, 0, "sum")
