"""One block of a Transformer, and the parts that a configuration names.

::

    x ─► attention ─► cross_attention ─► feedforward ─► y
            │               │                │
         (itself)       (a context,     (each token
                      in a decoder of   for itself)
                     an encoder-decoder)

Each part is added to what came in: ``norm(x + part(x))`` in a post-norm block (Vaswani et al. 2017, section 5.4),
``x + part(norm(x))`` in a pre-norm block (Xiong et al. 2020).
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multihead.layer import Cache, KeysValues, MultiHeadAttention
from multihead.layer.parts import start_linear
from multihead.masks import Mask
from multihead.models.config import Config
from multihead.positions import Alibi, Position, Rotary, T5Bias

__all__ = ["Block", "FeedForward"]


class FeedForward(nn.Module):
    r"""Two linear layers, applied to each token by itself (Vaswani et al. 2017, equation 2).

    .. math:: W_{down}\, \mathrm{act}(W_{up}\, x), \quad \text{or for SwiGLU} \quad
              W_{down} (\mathrm{SiLU}(W_{gate}\, x) \odot W_{up}\, x)

    (SwiGLU: Shazeer 2020, equation 6.)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        narrow, wide = config.embed_dim, config.feedforward_dim
        self.activation = config.activation
        self.up_proj = nn.Linear(narrow, wide, bias=config.bias)
        self.gate_proj = nn.Linear(narrow, wide, bias=config.bias) if config.activation == "swiglu" else None
        self.down_proj = nn.Linear(wide, narrow, bias=config.bias)
        for projection in self.children():
            start_linear(projection)

    def forward(self, x: Float[Tensor, "batch token embed"]) -> Float[Tensor, "batch token embed"]:
        """(batch, tokens, embed_dim) to the same shape."""
        wide = self.up_proj(x)
        if self.gate_proj is not None:
            return self.down_proj(F.silu(self.gate_proj(x)) * wide)
        return self.down_proj(F.relu(wide) if self.activation == "relu" else F.gelu(wide))


class Block(nn.Module):
    """Self-attention, cross-attention where there is a context, and a feed-forward network.

    Args:
        config: sizes and parts.
        cross: whether the block attends to a context too.
        position: what gives self-attention its order; None: the embeddings hold it.
    """

    def __init__(self, config: Config, *, cross: bool = False, position: Position | None = None) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = attention_of(config, position)
        self.attention_norm = norm_of(config)
        self.cross_attention = attention_of(config, None) if cross else None
        self.cross_norm = norm_of(config) if cross else None
        self.feedforward = FeedForward(config)
        self.feedforward_norm = norm_of(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch token embed"],
        mask: Mask | None = None,
        *,
        context: Float[Tensor, "batch key embed"] | KeysValues | None = None,
        context_mask: Mask | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch token embed"]:
        """(batch, tokens, embed_dim) to the same shape.

        Args:
            x: what came in.
            mask: which tokens each token sees.
            context: what ``cross_attention`` reads: (batch, keys, embed_dim), or what its ``keys_values`` made of it.
            context_mask: which of the context each token sees.
            cache: earlier tokens, which ``x`` follows.

        Raises:
            ValueError: there is a context and no cross-attention, or the reverse.
        """
        cross, cross_norm = self.cross_attention, self.cross_norm
        if (context is None) != (cross is None):
            raise ValueError(
                "context is None, but this block attends to one: pass what the encoder gave."
                if context is None
                else "a context came, but this block attends to none: make it with cross=True."
            )
        x = self._add(x, self.attention_norm, lambda h: self.attention(h, mask=mask, cache=cache))
        if cross is not None and cross_norm is not None:
            x = self._add(x, cross_norm, lambda h: cross(h, context, mask=context_mask))
        return self._add(x, self.feedforward_norm, self.feedforward)

    def keys_values(self, context: Float[Tensor, "batch key embed"]) -> KeysValues:
        """What ``cross_attention`` makes of a context, to be passed in its place at every step.

        Raises:
            ValueError: this block has no cross-attention.
        """
        if self.cross_attention is None:
            raise ValueError("this block attends to no context: make it with cross=True.")
        return self.cross_attention.keys_values(context)

    def _add(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))


def attention_of(config: Config, position: Position | None) -> MultiHeadAttention:
    """The attention that a configuration describes."""
    return MultiHeadAttention(
        config.embed_dim,
        config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        bias=config.bias,
        dropout=config.attention_dropout,
        softcap=config.softcap,
        sinks=config.sinks,
        qk_norm=_norm_class(config) if config.qk_norm else None,
        output_gate=config.output_gate,
        position=position,
    )


def norm_of(config: Config) -> nn.Module:
    """The norm that a configuration describes, over ``embed_dim`` features."""
    return _norm_class(config)(config.embed_dim)


def _norm_class(config: Config) -> Callable[..., nn.Module]:
    if config.norm == "rms":
        return partial(nn.RMSNorm, eps=config.norm_eps)
    return partial(nn.LayerNorm, eps=config.norm_eps, bias=config.bias)


def position_of(config: Config, *, causal: bool) -> Position | None:
    """What gives self-attention its order; None where the embeddings do. All blocks of a stack share it."""
    match config.position:
        case "rotary":
            return Rotary(config.width_of_head, base=config.rotary_base)
        case "alibi":
            return Alibi(config.num_heads)
        case "t5":
            return T5Bias(config.num_heads, bidirectional=not causal)
        case _:
            return None
