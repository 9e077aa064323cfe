"""Drop-in replacements of torch's attention modules: change the import, keep the checkpoint.

What differs from torch, on purpose: the weights that are returned are those before dropout, so every row sums to 1; a
query that sees no key gets zeros instead of NaN; ``is_causal=True`` needs no mask, and then lets the last query see
every key; ``out_proj`` is called as a module, so its hooks fire; the numbers are the same whether weights are asked for
or not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multihead.conventions import divisors, in_words, mismatch, shape_of
from multihead.core import AttentionCall, merge_heads, split_heads
from multihead.kernels import weights
from multihead.layer import Attend
from multihead.masks import Mask, causal, dense, padding, prefix

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.Module):
    r"""``torch.nn.MultiheadAttention``, seen through: same signature, same ``state_dict``, same starting parameters.

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
    """

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
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            advice = f"try {in_words(divisors(embed_dim), 'or')}." if embed_dim > 0 else "embed_dim must be positive."
            raise mismatch("num_heads", num_heads, f"a divisor of embed_dim={embed_dim}", advice)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        where = {"device": device, "dtype": dtype}

        def parameter(*shape: int, wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(*shape, **where)) if wanted else None

        packed = self._qkv_same_embed_dim
        self.register_parameter("in_proj_weight", parameter(3 * embed_dim, embed_dim, wanted=packed))
        self.register_parameter("q_proj_weight", parameter(embed_dim, embed_dim, wanted=not packed))
        self.register_parameter("k_proj_weight", parameter(embed_dim, self.kdim, wanted=not packed))
        self.register_parameter("v_proj_weight", parameter(embed_dim, self.vdim, wanted=not packed))
        self.register_parameter("in_proj_bias", parameter(3 * embed_dim, wanted=bias))
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **where)
        self.register_parameter("bias_k", parameter(1, 1, embed_dim, wanted=add_bias_kv))
        self.register_parameter("bias_v", parameter(1, 1, embed_dim, wanted=add_bias_kv))
        self.attend = Attend()
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Torch's own start, in torch's own order, so that the same seed gives the same layer."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
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
            is_causal: causal without a mask; with ``attn_mask`` it is torch's hint about that mask and changes nothing.

        Returns:
            The output, shaped as ``query``, and the weights before dropout, (N, L, S) or (N, num_heads, L, S), or None.
        """
        batched = query.ndim == 3
        same = query is key and key is value
        query, key, value = (
            self._batch_first(tensor, name) for name, tensor in (("query", query), ("key", key), ("value", value))
        )
        q, k, v = self._projected(query, key, value, same)
        extras = self._extras(k)
        k, v = torch.cat([extras[0], k], 1), torch.cat([extras[1], v], 1)
        mask, bias = self._masks(
            key_padding_mask, attn_mask, is_causal, (query.shape[0], query.shape[1], key.shape[1]), extras[0].shape[1]
        )
        call = AttentionCall(
            *(split_heads(tensor, self.num_heads) for tensor in (q, k, v)),
            mask=mask,
            bias=bias,
            dropout=self.dropout if self.training else 0.0,
        )
        output = self.out_proj(merge_heads(self.attend(call)))
        found = None
        if need_weights:
            # torch puts the extra keys after the sequence
            found = weights(call).roll(-extras[0].shape[1], -1).to(query.dtype)
            found = found.mean(1) if average_attn_weights else found
        if not batched:
            return output[0], None if found is None else found[0]
        return (output if self.batch_first else output.transpose(0, 1)), found

    def _batch_first(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.is_nested:
            raise ValueError(f"{name} is a nested tensor: pad it and pass key_padding_mask.")
        if tensor.ndim == 2:
            return tensor[None]
        if tensor.ndim != 3:
            raise ValueError(f"{name} has shape {shape_of(tensor)}, expected three axes, or two for a single sequence.")
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, ...]:
        if same and self.in_proj_weight is not None:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        packed = self.in_proj_weight
        own = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        projections = packed.chunk(3) if packed is not None else [weight for weight in own if weight is not None]
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), projections, biases, strict=True))

    def _extras(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values beside the sequence's own, (N, extras, E): the learned pair, then zeros."""
        batch, _, width = k.shape
        keys, values = [k.new_zeros(batch, 0, width)], [k.new_zeros(batch, 0, width)]
        if self.bias_k is not None and self.bias_v is not None:
            keys.append(self.bias_k.to(k.dtype).expand(batch, 1, width))
            values.append(self.bias_v.to(k.dtype).expand(batch, 1, width))
        if self.add_zero_attn:
            keys.append(k.new_zeros(batch, 1, width))
            values.append(k.new_zeros(batch, 1, width))
        return torch.cat(keys, 1), torch.cat(values, 1)

    def _masks(
        self,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
        sizes: tuple[int, int, int],
        extras: int,
    ) -> tuple[Mask | None, Tensor | None]:
        """What is visible and what is added to the scores, in this library's sense; the extra keys come first."""
        batch, queries, keys = sizes
        found: list[Mask] = []
        biases: list[Tensor] = []
        if key_padding_mask is not None:
            hidden = key_padding_mask[None] if key_padding_mask.ndim == 1 else key_padding_mask
            if hidden.shape != (batch, keys):
                raise ValueError(
                    f"key_padding_mask has shape {shape_of(key_padding_mask)}, "
                    f"expected (batch, keys) = ({batch}, {keys})."
                )
            if hidden.dtype == torch.bool:
                found.append(padding(F.pad(~hidden, (extras, 0), value=True)))
            else:
                biases.append(F.pad(hidden, (extras, 0))[:, None, None])
        if attn_mask is not None:
            blocked = (
                attn_mask.unflatten(0, (batch, self.num_heads))
                if attn_mask.shape == (batch * self.num_heads, queries, keys)
                else attn_mask
            )
            if (
                blocked.shape[-2:] != (queries, keys)
                or attn_mask.ndim not in (2, 3)
                or (attn_mask.ndim == 3 and blocked.ndim != 4)
            ):
                raise ValueError(
                    f"attn_mask has shape {shape_of(attn_mask)}, expected (queries, keys) = ({queries}, {keys}) or "
                    f"(batch · num_heads, queries, keys) = ({batch * self.num_heads}, {queries}, {keys})."
                )
            if blocked.dtype == torch.bool:
                found.append(dense(F.pad(~blocked, (extras, 0), value=True)))
            else:
                biases.append(F.pad(blocked, (extras, 0)))
        elif is_causal:
            found.append(causal() | prefix(extras) if extras else causal())
        mask = None
        for other in found:
            mask = other if mask is None else mask & other
        return mask, sum(biases[1:], biases[0]) if biases else None
