"""The layer: projections around one attention.

::

    x ──────► q_proj ─┐
                      │ split heads
    context ► k_proj ─┼─► AttentionCall ─► attend ─► merge heads ─► out_proj ─► y
    (or x)  ► v_proj ─┘
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch import device as Device
from torch import dtype as Dtype

from multihead.conventions import divisors, in_words, mismatch, shape_of
from multihead.core import AttentionCall, as_mask, check_heads, merge_heads, split_heads
from multihead.kernels import attend
from multihead.masks import Mask


class Attend(nn.Module):
    """The attention inside a layer: an :class:`~multihead.core.AttentionCall` in, (B, H, Lq, Dv) out.

    It has no parameters. It is a module so that there is one place where a hook sees, or a study changes, what the
    heads do.
    """

    def forward(self, call: AttentionCall) -> Float[Tensor, "batch head query value_dim"]:
        """The output of every head."""
        return attend(call)


class MultiHeadAttention(nn.Module):
    r"""Multi-head attention (Vaswani et al. 2017, section 3.2.2), self or cross, with grouped key/value heads.

    .. math:: \mathrm{MultiHead}(x, c) = \mathrm{Concat}(head_1, ..., head_H)\, W^O, \quad
              head_i = \mathrm{Attention}(x W_i^Q, c W_j^K, c W_j^V), \quad j = i // (H // H_{kv})

    Args:
        embed_dim: features of x, of the context and of the result.
        num_heads: query heads, H.
        num_kv_heads: key/value heads, a divisor of H; None: H (multi-head), 1: multi-query (Shazeer 2019), else grouped
            (Ainslie et al. 2023).
        head_dim: features of each head; None: ``embed_dim // num_heads``.
        bias: whether the four projections add a bias.
        dropout: probability with which each weight is dropped while training.
        scale: factor of the scores; None: 1/√head_dim.
        softcap: c > 0 keeps scores within -c and c (Gemma 2).
        sinks: whether each head learns a score for one more key that has no value (gpt-oss).
        device, dtype: of the parameters.

    Raises:
        ValueError: sizes that do not divide; the message says which would.

    The projections ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` are plain ``nn.Linear`` modules and are called
    as such.

    >>> import torch, multihead as mh
    >>> attn = mh.MultiHeadAttention(64, num_heads=8)
    >>> x, context = torch.zeros(2, 10, 64), torch.zeros(2, 13, 64)
    >>> attn(x).shape, attn(x, context).shape, attn(x, mask=mh.masks.causal()).shape
    (torch.Size([2, 10, 64]), torch.Size([2, 10, 64]), torch.Size([2, 10, 64]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        device: Device | str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, value in (("embed_dim", embed_dim), ("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
            if value < 1:
                raise mismatch(name, value, "a positive number", "it counts features or heads.")
        check_heads(num_heads, num_kv_heads)
        if head_dim is None:
            if embed_dim % num_heads:
                raise ValueError(
                    f"embed_dim={embed_dim} does not split into num_heads={num_heads}: "
                    f"try {in_words(divisors(embed_dim), 'or')} heads, or give head_dim."
                )
            head_dim = embed_dim // num_heads
        if head_dim < 1:
            raise mismatch("head_dim", head_dim, "a positive number", "it counts the features of a head.")
        if not 0.0 <= dropout < 1.0:
            raise mismatch("dropout", dropout, "a probability below 1", "0 drops nothing.")
        self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim = embed_dim, num_heads, num_kv_heads, head_dim
        self.dropout, self.scale, self.softcap = dropout, scale, softcap
        where = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias=bias, **where)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias, **where)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias, **where)
        self.out_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=bias, **where)
        self.sinks = nn.Parameter(torch.zeros(num_heads, **where)) if sinks else None
        self.attend = Attend()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections without bias, as torch's layer starts (Glorot & Bengio 2010); sinks at 0."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def forward(
        self,
        x: Float[Tensor, "batch query embed"],
        context: Float[Tensor, "batch key embed"] | None = None,
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch query embed"]:
        """Attend from ``x`` to ``context``, or to ``x`` itself.

        Args:
            x: (batch, queries, embed_dim).
            context: (batch, keys, embed_dim); None: self-attention.
            mask: what each query may see: an object of :mod:`multihead.masks`, or a boolean tensor, True where it may
                attend.
            bias: added to the scores, broadcastable to (batch, heads, queries, keys).

        Raises:
            ValueError: tensors that do not fit; the message says which and how.
        """
        context = x if context is None else context
        for name, tensor in (("x", x), ("context", context)):
            if tensor.ndim != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(f"{name} has shape {shape_of(tensor)}, expected (batch, tokens, {self.embed_dim}).")
        call = AttentionCall(
            split_heads(self.q_proj(x), self.num_heads),
            split_heads(self.k_proj(context), self.num_kv_heads),
            split_heads(self.v_proj(context), self.num_kv_heads),
            mask=as_mask(mask),
            bias=bias,
            scale=self.scale,
            softcap=self.softcap,
            sinks=self.sinks,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(merge_heads(self.attend(call)))

    def extra_repr(self) -> str:
        """The sizes, as they appear in ``print(model)``."""
        grouped = "" if self.num_kv_heads == self.num_heads else f", num_kv_heads={self.num_kv_heads}"
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}{grouped}, head_dim={self.head_dim}"
