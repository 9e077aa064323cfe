"""Where tokens are: the ways in which attention, which sees a set, learns of an order.

====================  =================  ==========================  =================================================
scheme                acts on            learns                      choose it
====================  =================  ==========================  =================================================
:class:`Rotary`       queries and keys   nothing                     by default: relative, exact with a cache, costs
                                                                     no memory; needs a scaling beyond its length
:class:`Alibi`        scores             nothing                     to read texts longer than those learned from;
                                                                     every head forgets with distance
:class:`T5Bias`       scores             buckets × heads             where distances should be learned, as in T5;
                                                                     far ones are not told apart
:class:`Sinusoidal`   embeddings         nothing                     for the original Transformer; any length
:class:`Learned`      embeddings         max_length × embed_dim      for BERT, GPT-2, ViT; ends at max_length
====================  =================  ==========================  =================================================

The first three are a :class:`Position`: a layer takes one as ``position`` and asks it. The other two are called once,
on the embeddings before the first layer. A trained model needs the scheme, and the numbers, that it was trained with.

To let a rotary model read longer texts, give :class:`Rotary` the scaling with which it was fine-tuned (:class:`Linear`,
:class:`YaRN`, :class:`Llama3`), or :class:`NTK`, which needs no fine-tuning.

>>> import torch
>>> from multihead import positions
>>> rotary = positions.Rotary(64, base=500_000.0, scaling=positions.Llama3())
>>> keys = torch.zeros(2, 8, 10, 64)
>>> rotary.turn(keys, torch.arange(10)[None]).shape
torch.Size([2, 8, 10, 64])
"""

from multihead.positions.absolute import Learned, Sinusoidal
from multihead.positions.base import Position
from multihead.positions.frequencies import NTK, Linear, Llama3, Scaling, YaRN
from multihead.positions.relative import Alibi, T5Bias
from multihead.positions.rotary import Rotary

__all__ = [
    "NTK",
    "Alibi",
    "Learned",
    "Linear",
    "Llama3",
    "Position",
    "Rotary",
    "Scaling",
    "Sinusoidal",
    "T5Bias",
    "YaRN",
]
