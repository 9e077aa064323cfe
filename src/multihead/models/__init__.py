"""Transformers built from the layer: an encoder, a decoder, and both; and what they write.

=======================  =======================  =======================================  =======================
model                    reads                    gives                                    its blocks attend to
=======================  =======================  =======================================  =======================
:class:`Encoder`         a text                   features, each of which saw all tokens   the text
:class:`Decoder`         a text so far            logits of the next token                 the text so far
:class:`EncoderDecoder`  a source, and a target   logits of the target's next token        the source (encoder); the
                         so far                                                            target so far, then the
                                                                                           source (decoder)
=======================  =======================  =======================================  =======================

One :class:`Config` says what any of them is made of; :func:`generate` and :func:`stream` let the last two write.
"""

from multihead.models.block import Block, FeedForward
from multihead.models.choices import Beam, Choice, Greedy, Sample
from multihead.models.config import Config
from multihead.models.decoder import Decoder, State
from multihead.models.encoder import Encoder
from multihead.models.encoder_decoder import EncoderDecoder
from multihead.models.generation import Generated, generate, stream
from multihead.models.model import Model

__all__ = [
    "Beam",
    "Block",
    "Choice",
    "Config",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "FeedForward",
    "Generated",
    "Greedy",
    "Model",
    "Sample",
    "State",
    "generate",
    "stream",
]
