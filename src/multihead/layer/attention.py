"""The layer: projections around one attention.

::

    x ──────► q_proj ─ split heads ─ (q_norm) ─ (turn) ─┐
                                                        │
    context ► k_proj ─ split heads ─ (k_norm) ─ (turn) ─┼► (cache) ─► AttentionCall ─► attend ─ (gate) ─ out_proj ─► y
    (or x)  ► v_proj ─ split heads ─────────────────────┘

A fused layer has one ``qkv_proj`` in the place of the three.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch import device as Device
from torch import dtype as Dtype

from multihead.biases import Bias
from multihead.conventions import checked_count, divisors, in_words
from multihead.core import AttentionCall, check_heads, check_scores, merge_heads, split_heads
from multihead.kernels import attend, attend_with_weights
from multihead.layer.cache import Cache, KeysValues
from multihead.layer.parts import (
    check_position,
    check_tokens,
    features_of,
    mask_and_bias,
    normed,
    places_of,
    start_linear,
)
from multihead.masks import Mask
from multihead.positions import Position


class Attend(nn.Module):
    """The attention inside a layer: an :class:`~multihead.core.AttentionCall` in, (B, H, Lq, Dv) out.

    It has no parameters. It is a module so that there is one place where a hook sees, or a study changes, what the
    heads do.
    """

    def forward(
        self, call: AttentionCall, weights: Literal["mean", "each"] | None = None
    ) -> Float[Tensor, "batch head query value_dim"] | tuple[Tensor, Tensor]:
        """The output of every head; with ``weights``, also these, (B, Lq, Lk) or (B, H, Lq, Lk), before dropout."""
        return attend(call) if weights is None else attend_with_weights(call, mean=weights == "mean")


class MultiHeadAttention(nn.Module):
    r"""Multi-head attention (Vaswani et al. 2017, section 3.2.2), self or cross, with grouped key/value heads.

    .. math:: \mathrm{MultiHead}(x, c) = \mathrm{Concat}(head_1, ..., head_H)\, W^O, \quad
              head_i = \mathrm{Attention}(x W_i^Q, c W_j^K, c W_j^V), \quad j = i // (H // H_{kv})

    ::

        multi-head (H = Hkv)    grouped (Hkv = 2)     multi-query (Hkv = 1)
        q  0 1 2 3              q  0 1 2 3            q  0 1 2 3
           │ │ │ │                 └┬┘ └┬┘               └─┬─┬─┘
        kv 0 1 2 3              kv  0   1             kv    0

    Args:
        embed_dim: features of x.
        num_heads: query heads, H.
        num_kv_heads: key/value heads, a divisor of H; None: H (multi-head), 1: multi-query (Shazeer 2019), else grouped
            (Ainslie et al. 2023).
        head_dim: features of each head; None: ``embed_dim // num_heads``.
        kdim: features of the context; None: embed_dim.
        vdim: features of the values, where they are given apart from the context; None: kdim.
        out_dim: features of the result; None: embed_dim.
        bias: whether the projections add a bias.
        dropout: probability with which each weight is dropped while training; weights that are reported are those
            before it.
        scale: factor of the scores; None: 1/√head_dim.
        softcap: c > 0 keeps scores within -c and c (Gemma 2).
        sinks: whether each head learns a score for one more key that has no value (gpt-oss).
        qk_norm: norm of each head's queries and keys before they are turned, such as ``nn.RMSNorm`` (Qwen3) or
            ``nn.LayerNorm`` (ViT-22B); called with head_dim, device and dtype.
        output_gate: whether a sigmoid of x, feature by feature, scales what the heads found before the last projection
            (Qiu et al. 2025, "Gated attention for large language models", its first variant).
        fused: whether one projection, ``qkv_proj``, gives queries, keys and values, stacked in this order: one product
            in the place of three, which self-attention over few tokens is faster by. Where keys come from a context,
            x and the context go through their own rows of its weight; through all of them, the rest being thrown away,
            where an adapter, a hook or a quantised weight is attached.
        position: an object of :mod:`multihead.positions` that turns queries and keys or gives a bias; for
            self-attention. Layers may share one, so it stays on the device where it was made until the model moves.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: sizes that do not divide or are no whole numbers; the message says what would fit.

    The projections ``q_proj``, ``k_proj``, ``v_proj`` (fused: ``qkv_proj``) and ``out_proj`` (and ``gate_proj``) are
    plain ``nn.Linear`` modules and are called as such, so hooks, adapters, pruning and quantisation work on each.

    >>> import torch, multihead as mh
    >>> attn = mh.MultiHeadAttention(64, num_heads=8)
    >>> x, context = torch.zeros(2, 10, 64), torch.zeros(2, 13, 64)
    >>> attn(x).shape, attn(x, context).shape, attn(x, mask=mh.masks.causal()).shape
    (torch.Size([2, 10, 64]), torch.Size([2, 10, 64]), torch.Size([2, 10, 64]))
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    qkv_proj: nn.Linear | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        out_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        qk_norm: Callable[..., nn.Module] | None = None,
        output_gate: bool = False,
        fused: bool = False,
        position: Position | None = None,
        device: Device | str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = self.kdim if vdim is None else vdim
        self.out_dim = embed_dim if out_dim is None else out_dim
        for name in ("embed_dim", "num_heads", "num_kv_heads", "kdim", "vdim", "out_dim"):
            checked_count(name, getattr(self, name))
        check_heads(num_heads, self.num_kv_heads)
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"embed_dim={embed_dim} does not split into num_heads={num_heads}: "
                f"try {in_words(divisors(embed_dim), 'or')} heads, or give head_dim."
            )
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        checked_count("head_dim", self.head_dim)
        check_scores(scale, softcap, dropout)
        self.dropout, self.scale, self.softcap = dropout, scale, softcap
        where = {"device": device, "dtype": dtype}
        width, kv_width = num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if fused and not embed_dim == self.kdim == self.vdim:
            raise ValueError(
                f"fused=True projects tokens of embed_dim={embed_dim} features, but kdim={self.kdim} and "
                f"vdim={self.vdim}: leave it out where they differ."
            )
        self.qkv_proj = nn.Linear(embed_dim, width + 2 * kv_width, bias=bias, **where) if fused else None
        if not fused:
            self.q_proj = nn.Linear(embed_dim, width, bias=bias, **where)
            self.k_proj = nn.Linear(self.kdim, kv_width, bias=bias, **where)
            self.v_proj = nn.Linear(self.vdim, kv_width, bias=bias, **where)
        self.out_proj = nn.Linear(width, self.out_dim, bias=bias, **where)
        self.gate_proj = nn.Linear(embed_dim, width, bias=bias, **where) if output_gate else None
        self.q_norm = None if qk_norm is None else qk_norm(self.head_dim, **where)
        self.k_norm = None if qk_norm is None else qk_norm(self.head_dim, **where)
        self.sinks = nn.Parameter(torch.empty(num_heads, **where)) if sinks else None
        check_position(position, num_heads, self.head_dim)
        self.position = position
        self.attend = Attend()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections without bias, as torch's layer starts (Glorot & Bengio 2010); sinks at 0."""
        if self.qkv_proj is None:
            for projection in (self.q_proj, self.k_proj, self.v_proj):
                start_linear(projection)
        else:
            start_linear(self.qkv_proj, self._stacked)
        for projection in (self.out_proj, self.gate_proj):
            start_linear(projection)
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def forward(
        self,
        x: Float[Tensor, "batch query embed"],
        context: Float[Tensor, "batch key kdim"] | KeysValues | None = None,
        values: Float[Tensor, "batch key vdim"] | None = None,
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | Bias | None = None,
        positions: Int[Tensor, "batch_or_1 query"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query out"]:
        """Attend from ``x`` to ``context``, or to ``x`` itself.

        Args:
            x: (batch, queries, embed_dim).
            context: (batch, keys, kdim), or what :meth:`keys_values` made of it; None: self-attention.
            values: (batch, keys, vdim), where values come from elsewhere than keys; None: the context.
            mask: what each query may see: an object of :mod:`multihead.masks`, or a boolean tensor, True where it may
                attend. With a cache the keys are all tokens so far.
            bias: added to the scores: a tensor that broadcasts to (batch, heads, queries, keys), or an object of
                :mod:`multihead.biases`.
            positions: (batch, queries), or (1, queries) for the whole batch: where the tokens of x stand; None: one
                after the other, behind those in the cache.
            cache: what the layer remembers of earlier tokens; x holds the tokens after these and is added to it.

        Raises:
            ValueError, TypeError: tensors that do not fit; the message says which and how.
        """
        if context is None and values is None:
            q, kv, found = self._own(x, positions, cache)
        else:
            q, kv, found = self._queries(x), self._others(context, values, positions, cache), None
        if not (mask is bias is found is None):
            mask, bias = mask_and_bias(mask, bias, found, q, kv)
        call = AttentionCall(
            q,
            kv.k,
            kv.v,
            mask=mask,
            bias=bias,
            scale=self.scale,
            softcap=self.softcap,
            sinks=self.sinks,
            dropout=self.dropout if self.training else 0.0,
        )
        heads = merge_heads(self.attend(call))
        if self.gate_proj is not None:
            heads = heads * torch.sigmoid(self.gate_proj(x))
        return self.out_proj(heads)

    def keys_values(
        self, context: Float[Tensor, "batch key kdim"], values: Float[Tensor, "batch key vdim"] | None = None
    ) -> KeysValues:
        """The keys and values of a context, to be passed in its place: a decoder attends to one text at every step.

        Shapes as in :meth:`forward`; the result holds (batch, num_kv_heads, keys, head_dim) each.
        """
        check_tokens("context", context, self.kdim, self.k_proj if self.qkv_proj is None else self.qkv_proj)
        if values is None:
            values = context
        else:
            check_tokens("values", values, self.vdim, self.v_proj if self.qkv_proj is None else self.qkv_proj)
        fused, width, heads = self.qkv_proj, sum(self._stacked[:2]), self.num_kv_heads
        if fused is None:
            k, v = split_heads(self.k_proj(context), heads), split_heads(self.v_proj(values), heads)
        elif values is context:
            both = features_of(fused, context, slice(self._stacked[0], None))
            k, v = split_heads(both, 2 * heads).chunk(2, 1)
        else:
            k = split_heads(features_of(fused, context, slice(self._stacked[0], width)), heads)
            v = split_heads(features_of(fused, values, slice(width, None)), heads)
        return KeysValues(k if self.k_norm is None else normed(self.k_norm, k), v)

    @property
    def _stacked(self) -> tuple[int, int, int]:
        """Features of queries, keys and values."""
        width = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, width, width

    def _queries(self, x: Tensor) -> Tensor:
        fused = self.qkv_proj
        projection = self.q_proj if fused is None else fused
        check_tokens("x", x, self.embed_dim, projection)
        found = projection(x) if fused is None else features_of(fused, x, slice(self._stacked[0]))
        q = split_heads(found, self.num_heads)
        return q if self.q_norm is None else normed(self.q_norm, q)

    def _own(self, x: Tensor, positions: Tensor | None, cache: Cache | None) -> tuple[Tensor, KeysValues, Bias | None]:
        """Self-attention: queries and all keys so far, turned, and the bias of their places."""
        if self.kdim != self.embed_dim or self.vdim != self.embed_dim:
            raise ValueError(
                f"this layer attends from {self.embed_dim} features to a context of {self.kdim}, with values of "
                f"{self.vdim}: pass a context."
            )
        fused, heads = self.qkv_proj, self.num_kv_heads
        projection = self.q_proj if fused is None else fused
        check_tokens("x", x, self.embed_dim, projection)
        if fused is None:
            q = split_heads(projection(x), self.num_heads)
            k, v = split_heads(self.k_proj(x), heads), split_heads(self.v_proj(x), heads)
        else:
            every = split_heads(projection(x), self.num_heads + 2 * heads)
            q, k, v = every.split_with_sizes((self.num_heads, heads, heads), 1)
        if self.q_norm is not None:
            q = normed(self.q_norm, q)
        if self.k_norm is not None:
            k = normed(self.k_norm, k)
        position = self.position
        if position is not None or positions is not None:
            places = places_of(x, position, positions, cache)
            if position is not None:
                q, k = position.turn(q, places), position.turn(k, places)
        kv = KeysValues(k, v, positions) if cache is None else cache.update(k, v, positions)
        found = None if position is None else position.bias_between(positions, kv.positions)
        return q, kv, found

    def _others(
        self, context: Tensor | KeysValues | None, values: Tensor | None, positions: Tensor | None, cache: Cache | None
    ) -> KeysValues:
        """Cross-attention: the context's keys and values."""
        if context is None:
            raise ValueError("values came without a context: a key is needed for each value.")
        for name, given in (("position", self.position), ("positions", positions), ("cache", cache)):
            if given is not None:
                raise ValueError(
                    f"{name} is for self-attention, where queries and keys are tokens of one sequence: leave the "
                    "context out, or make a layer without it; what keys_values(context) returns is a context's cache."
                )
        if isinstance(context, KeysValues):
            if values is not None:
                raise ValueError("values came beside keys and values that are projected already: leave one out.")
            return context
        if isinstance(context, Mask):
            raise TypeError("context is a mask: say mask=..., the second argument is what x attends to.")
        if values is None and self.vdim != self.kdim:
            raise ValueError(
                f"this layer's keys have {self.kdim} features and its values {self.vdim}: pass values too."
            )
        return self.keys_values(context, values)

    @classmethod
    def from_torch(cls, module: nn.Module, *, fused: bool = False) -> "MultiHeadAttention":
        """A layer with the weights of ``nn.MultiheadAttention``, and equal outputs.

        Self and cross, kdim and vdim, layers without bias, dropout, training mode, device and dtype are kept.
        Parameters are copied, not shared. This layer takes (batch, sequence, embed) tensors whatever ``batch_first``
        says, and masks in which True means may attend, where torch's means may not.

        Args:
            module: an ``nn.MultiheadAttention``, or :class:`multihead.torch_compat.MultiheadAttention`.
            fused: whether the layer has one projection for queries, keys and values, as torch's has.

        Raises:
            TypeError: another class, or projections that are not plain.
            ValueError: ``add_bias_kv`` or ``add_zero_attn``, which this layer does not have.

        >>> import torch, multihead as mh
        >>> theirs = torch.nn.MultiheadAttention(64, num_heads=8, batch_first=True)
        >>> ours = mh.MultiHeadAttention.from_torch(theirs)
        >>> x = torch.randn(2, 10, 64)
        >>> torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)
        True
        """
        # conversions make layers, so their file imports this one
        from multihead.layer.conversions import from_torch

        return from_torch(module, cls, fused=fused)

    def to_torch(self, *, batch_first: bool = True) -> nn.MultiheadAttention:
        """An ``nn.MultiheadAttention`` with this layer's weights, and equal outputs.

        Parameters are copied, not shared. Key/value heads that serve several query heads are repeated, and where only
        some projections have a bias the others get zeros: the outputs stay equal, but there is more to learn.

        Args:
            batch_first: whether its tensors are (batch, sequence, embed) rather than (sequence, batch, embed).

        Raises:
            ValueError: what torch's layer cannot express; the message names all of it.

        >>> import torch, multihead as mh
        >>> ours = mh.MultiHeadAttention(64, num_heads=8, num_kv_heads=2)
        >>> theirs = ours.to_torch()
        >>> x = torch.randn(2, 10, 64)
        >>> torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)
        True
        """
        from multihead.layer.conversions import to_torch

        return to_torch(self, batch_first=batch_first)

    def extra_repr(self) -> str:
        """The sizes, as they appear in ``print(model)``; those that follow from others are left out."""
        usual = {"num_kv_heads": self.num_heads, "kdim": self.embed_dim, "vdim": self.kdim, "out_dim": self.embed_dim}
        unusual = [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        sizes = [f"{name}={getattr(self, name)}" for name in ("embed_dim", "num_heads", "head_dim")]
        return ", ".join([*sizes, *unusual])
