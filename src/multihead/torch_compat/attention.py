"""``torch.nn.MultiheadAttention`` once more, on this library's attention."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from multihead.conventions import checked_count, divisors, in_words, kind_of, mismatch, shape_of
from multihead.core import AttentionCall, check_scores, merge_heads, split_heads
from multihead.kernels.tracing import traced
from multihead.layer import Attend
from multihead.layer.parts import features_of
from multihead.masks import Sizes
from multihead.torch_compat.masks import mask_and_bias
from multihead.torch_compat.names import TorchNames


class MultiheadAttention(TorchNames):
    r"""``torch.nn.MultiheadAttention``, seen through: same signature, same ``state_dict``, same starting parameters.

    .. math:: \mathrm{MultiHead}(Q, K, V) = \mathrm{Concat}(head_1, ..., head_H)\, W^O, \quad
              head_i = \mathrm{Attention}(Q W_i^Q, K W_i^K, V W_i^V)

    (Vaswani et al. 2017, section 3.2.2.) What gives other numbers than torch, and why, stands in
    :mod:`multihead.torch_compat`.

    The projections are plain ``nn.Linear`` modules: ``in_proj`` for queries, keys and values together, or ``q_proj``,
    ``k_proj`` and ``v_proj`` where ``kdim`` or ``vdim`` differs from ``embed_dim``; and ``out_proj``. They are called,
    so that hooks, adapters and quantisers reach them. In cross-attention rows of ``in_proj`` are used without calling
    it as long as nothing is attached to it.

    The textbook example: 8 heads, 64 dimensions, 10 tokens, a batch of 2.

    >>> import torch
    >>> from multihead.torch_compat import MultiheadAttention
    >>> attention = MultiheadAttention(embed_dim=64, num_heads=8)
    >>> x = torch.rand(10, 2, 64)
    >>> output, weights = attention(x, x, x)
    >>> output.shape, weights.shape
    (torch.Size([10, 2, 64]), torch.Size([2, 10, 10]))
    >>> bool(torch.allclose(weights.sum(-1), torch.ones(2, 10)))
    True

    Args:
        embed_dim: features of queries and of the output.
        num_heads: heads, each ``embed_dim // num_heads`` wide.
        dropout: probability with which each weight is dropped while training.
        bias: whether the projections add a bias.
        add_bias_kv: whether one learned key and value stands after the sequence.
        add_zero_attn: whether one key and value of zeros stands after the sequence.
        kdim, vdim: features of keys and values; None: embed_dim.
        batch_first: whether tensors are (batch, tokens, features) rather than (tokens, batch, features).
        device, dtype: of the parameters.

    Raises:
        ValueError: sizes that do not divide or are below 1, or a dropout that is no probability below 1.
        TypeError: a size that is no whole number.
    """

    _qkv_same_embed_dim = False
    """Torch's encoder layer reads this before it computes everything in one operator, without calling any module of
    it. False is what keeps it from passing by our hooks, whatever the sizes."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kdim, vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads), ("kdim", kdim), ("vdim", vdim)):
            checked_count(name, size)
        if embed_dim % num_heads:
            advice = f"try {in_words(divisors(embed_dim), 'or')}."
            raise mismatch("num_heads", num_heads, f"a divisor of embed_dim={embed_dim}", advice)
        check_scores(None, None, dropout)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = kdim, vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        where = {"device": device, "dtype": dtype}
        packed = kdim == vdim == embed_dim
        self.in_proj = _linear(embed_dim, 3 * embed_dim, bias=bias, **where) if packed else None
        self.q_proj = None if packed else _linear(embed_dim, embed_dim, bias=False, **where)
        self.k_proj = None if packed else _linear(kdim, embed_dim, bias=False, **where)
        self.v_proj = None if packed else _linear(vdim, embed_dim, bias=False, **where)
        # a module of their own, because an optimizer's checkpoint counts parameters: these come before out_proj's
        self.vectors = nn.Module()
        for name, shape, wanted in (
            ("in_proj_bias", (3 * embed_dim,), bias and not packed),
            ("bias_k", (1, 1, embed_dim), add_bias_kv),
            ("bias_v", (1, 1, embed_dim), add_bias_kv),
        ):
            self.vectors.register_parameter(name, nn.Parameter(torch.empty(shape, **where)) if wanted else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **where)
        self.attend = Attend()
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Torch's own start, in torch's own order, so that the same seed gives the same layer."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E) for a single sequence.
            key: likewise with S tokens and ``kdim`` features.
            value: likewise with S tokens and ``vdim`` features.
            key_padding_mask: (N, S) or (S,); boolean, True at keys to ignore (torch's sense), or float, added to the
                scores.
            need_weights: whether to return weights.
            attn_mask: (L, S) or (N · num_heads, L, S); boolean, True where attending is not allowed (torch's sense), or
                float, added.
            average_attn_weights: whether weights are averaged over heads.
            is_causal: causal without a mask, the last query seeing every key; with ``attn_mask`` it is torch's hint
                about that mask and changes nothing.

        Returns:
            The output, shaped as ``query``, and the weights before dropout, (N, L, S) or (N, num_heads, L, S), or None.

        Raises:
            ValueError, TypeError: tensors that do not fit; the message says which and how.
        """
        self._check(query, key, value)
        batched = query.ndim == 3
        # a tensor that stands in two places stays one, so that it is projected once
        own_query = self._batch_first(query)
        own_key = own_query if key is query else self._batch_first(key)
        own_value = own_key if value is key else self._batch_first(value)
        q, k, v = self._projected(own_query, own_key, own_value)
        k, v, extras = self._with_extras(k, v)
        q, k, v = (split_heads(tensor, self.num_heads) for tensor in (q, k, v))
        call = AttentionCall(q, k, v, dropout=self.dropout if self.training else 0.0)
        mask, bias = mask_and_bias(
            key_padding_mask,
            attn_mask,
            is_causal=is_causal,
            sizes=Sizes(q.shape[0], self.num_heads, q.shape[2], own_key.shape[1]),
            batched=batched,
            extras=extras,
            look=not traced(call),
        )
        call = replace(call, mask=mask, bias=bias)
        found = None
        if need_weights:
            heads, found = self.attend(call, "mean" if average_attn_weights else "each")
            # the extra keys stand after the sequence, where torch has them
            found = (found.roll(-extras, -1) if extras else found).to(query.dtype)
        else:
            heads = self.attend(call)
        merged = merge_heads(heads)
        # turned before out_proj, whose output then lies in memory as torch's does
        output = self.out_proj(merged if self.batch_first or not batched else merged.transpose(0, 1))
        if batched:
            return output, found
        return output[0], None if found is None else found[0]

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Raise where the three tensors do not fit this module or each other."""
        tensors, sizes = {"query": query, "key": key, "value": value}, {"embed_dim": self.embed_dim}
        sizes |= {"kdim": self.kdim, "vdim": self.vdim}
        for (name, tensor), (word, size) in zip(tensors.items(), sizes.items(), strict=True):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} is {kind_of(tensor)}, expected a tensor.")
            if tensor.is_nested:
                raise ValueError(
                    f"{name} is a nested tensor: pad it and pass key_padding_mask. If nn.TransformerEncoder made it, "
                    "build that with enable_nested_tensor=False, or let multihead.torch_compat.replace change it."
                )
            if tensor.ndim not in (2, 3) or tensor.shape[-1] != size:
                axes = "batch, tokens" if self.batch_first else "tokens, batch"
                raise ValueError(
                    f"{name} has shape {shape_of(tensor)}, expected ({axes}, {word}={size}) or, for a single sequence, "
                    f"(tokens, {word}={size})."
                )
            if tensor.ndim != query.ndim:
                raise ValueError(
                    f"{name} has shape {shape_of(tensor)} but query has {shape_of(query)}: either all have a batch or "
                    "none has."
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"key has shape {shape_of(key)} but value has {shape_of(value)}: each key needs its value."
            )
        batch = 0 if self.batch_first else 1
        if query.ndim == 3 and query.shape[batch] != key.shape[batch]:
            raise ValueError(
                f"query has batch {query.shape[batch]} but key has {key.shape[batch]}: {shape_of(query)} and "
                f"{shape_of(key)} with batch_first={self.batch_first}."
            )

    def _batch_first(self, tensor: Tensor) -> Tensor:
        """The tensor as (batch, tokens, features)."""
        if tensor.ndim == 2:
            return tensor[None]
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        packed, width = self.in_proj, self.embed_dim
        if packed is None:
            return self._projected_apart(query, key, value)
        if query is key and key is value:
            return packed(query).chunk(3, -1)
        q = features_of(packed, query, slice(width))
        if key is value:
            return q, *features_of(packed, key, slice(width, None)).chunk(2, -1)
        k = features_of(packed, key, slice(width, 2 * width))
        return q, k, features_of(packed, value, slice(2 * width, None))

    def _projected_apart(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        projections = [each for each in (self.q_proj, self.k_proj, self.v_proj) if each is not None]
        found = [project(x) for project, x in zip(projections, inputs, strict=True)]
        if self.in_proj_bias is None:
            return tuple(found)
        return tuple(x + bias.to(x.dtype) for x, bias in zip(found, self.in_proj_bias.chunk(3), strict=True))

    def _with_extras(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with those that are nobody's token before them, and their number.

        They stand first, where torch has them last, so that the sequence keeps its end: causal counts from there.
        """
        one = (k.shape[0], 1, k.shape[2])
        keys, values = [], []
        if self.bias_k is not None and self.bias_v is not None:
            keys.append(self.bias_k.to(k.dtype).expand(one))
            values.append(self.bias_v.to(v.dtype).expand(one))
        if self.add_zero_attn:
            keys.append(k.new_zeros(one))
            values.append(v.new_zeros(one))
        if not keys:
            return k, v, 0
        return torch.cat([*keys, k], 1), torch.cat([*values, v], 1), len(keys)


def _linear(
    in_features: int, out_features: int, *, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Linear:
    """A linear layer that draws no random numbers: torch has bare parameters here, and the same seed must give both."""
    linear = nn.Linear(in_features, out_features, bias=bias, device="meta")
    linear.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
    if bias:
        linear.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
    return linear
