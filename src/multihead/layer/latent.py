"""The layer that remembers little: keys and values made from a few features that all heads share.

::

    x ─► (q_down ─ q_norm) ─► q_proj ─ split heads ─┬─ head_dim features ──┐
                                                    └─ rope_dim ─ turn ────┤
    x ─► kv_down ─ kv_norm ─► c ───┐              ┌─ k_proj ─ split heads ─┼─► AttentionCall ─► attend ─ out_proj ─► y
                                   ├─► (cache) ─►─┼─ r, one for all heads ─┤
    x ─► k_rope_proj ─ turn ─► r ──┘              └─ v_proj ─ split heads ─┘

Only c and r are remembered. A step of decoding does not make the keys and values of the whole past from them: a score
is the inner product of a query and ``k_proj`` of c, so the query goes through the transpose of ``k_proj`` instead and
meets c itself; and ``v_proj``, being linear, is applied once to the weighted sum of c.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch import device as Device
from torch import dtype as Dtype

from multihead.biases import Bias
from multihead.conventions import checked_count, default_scale
from multihead.core import AttentionCall, check_scores, merge_heads, split_heads
from multihead.layer.attention import Attend
from multihead.layer.cache import Cache, KeysValues
from multihead.layer.parts import check_position, check_tokens, mask_and_bias, normed, places_of, start_linear
from multihead.masks import Mask
from multihead.positions import Position


class MultiHeadLatentAttention(nn.Module):
    r"""Multi-head latent attention: self-attention whose keys and values of all heads come from one narrow vector.

    .. math:: c = \mathrm{norm}(x W^{DKV}), \quad r = \mathrm{turn}(x W^{KR}), \quad
              k_i = [c W_i^{UK}; r], \quad v_i = c W_i^{UV}, \quad q_i = [q_i^C; \mathrm{turn}(q_i^R)], \\
              y = \mathrm{Concat}(head_1, ..., head_H)\, W^O, \quad head_i = \mathrm{Attention}(q_i, k_i, v_i)

    Source: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1, equations 9 to 19; the norms: section 3.1.2. A rotation
    between c and ``k_proj`` would not let the two be joined with the query, so position goes through r, apart.

    What a layer remembers of each token:

    ===========================  =======================  ===================================
    layer                        numbers a token          H = 128, D = 128, Hkv = 8, DeepSeek
    ===========================  =======================  ===================================
    multi-head                   2 · H · D                32,768
    grouped                      2 · Hkv · D              2,048
    latent                       kv_rank + rope_dim       512 + 64 = 576
    ===========================  =======================  ===================================

    Args:
        embed_dim: features of x, and of the result.
        num_heads: heads, H.
        head_dim: features of each head's queries and keys that know no position.
        rope_dim: features of each head's queries, and of the one key for all heads, that ``position`` turns.
        kv_rank: features of c.
        q_rank: features through which queries go, with a norm; None: they are projected from x directly.
        value_dim: features of each head's values; None: head_dim.
        bias: whether ``q_down``, ``kv_down``, ``k_rope_proj`` and ``out_proj`` add a bias; the projections to heads
            never do.
        dropout: probability with which each weight is dropped while training; weights that are reported are those
            before it.
        scale: factor of the scores; None: 1/√(head_dim + rope_dim). DeepSeek's models with :class:`YaRN
            <multihead.positions.YaRN>` multiply that by (0.1 · mscale_all_dim · ln(factor) + 1)²; since their rotation
            changes only rope_dim of the features, it is said here.
        norm: norm of c and of the narrow queries, called with their features, device and dtype; None: there is none,
            as in the equations. ``functools.partial(nn.RMSNorm, eps=1e-6)`` is DeepSeek's.
        position: an object of :mod:`multihead.positions` made for heads of rope_dim features, such as
            ``Rotary(rope_dim)``; None: nothing is turned, and only the mask knows an order.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: sizes below 1 or that are no whole numbers, or a position for other sizes.

    The projections are plain ``nn.Linear`` modules: ``q_down`` and ``kv_down`` to the narrow vectors, ``k_rope_proj``
    to r, ``q_proj`` (each head's head_dim features, then its rope_dim), ``k_proj`` and ``v_proj`` to the heads, and
    ``out_proj``. They are called as such, but for steps on a cache, where the weights of ``k_proj`` and ``v_proj`` are
    used without a call if nobody would notice: see :meth:`forward`.

    >>> import torch, multihead as mh
    >>> position = mh.positions.Rotary(16)
    >>> attn = mh.MultiHeadLatentAttention(64, 8, head_dim=32, rope_dim=16, kv_rank=24, position=position)
    >>> x = torch.randn(1, 6, 64)
    >>> cache = mh.GrowingCache()
    >>> with torch.no_grad():
    ...     start = attn(x[:, :5], mask=mh.masks.causal(), cache=cache)     # prefill
    ...     step = attn(x[:, 5:], mask=mh.masks.causal(), cache=cache)      # one token
    ...     whole = attn(x, mask=mh.masks.causal())
    >>> torch.allclose(torch.cat([start, step], 1), whole, atol=1e-5), cache.length
    (True, 6)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int,
        rope_dim: int,
        kv_rank: int,
        q_rank: int | None = None,
        value_dim: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
        norm: Callable[..., nn.Module] | None = nn.RMSNorm,
        position: Position | None = None,
        device: Device | str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim, self.rope_dim = embed_dim, num_heads, head_dim, rope_dim
        self.kv_rank, self.q_rank = kv_rank, q_rank
        self.value_dim = head_dim if value_dim is None else value_dim
        for name in ("embed_dim", "num_heads", "head_dim", "rope_dim", "kv_rank", "value_dim"):
            checked_count(name, getattr(self, name))
        if q_rank is not None:
            checked_count("q_rank", q_rank)
        check_scores(scale, None, dropout)
        self.dropout, self.scale = dropout, scale
        where = {"device": device, "dtype": dtype}
        self.q_down = None if q_rank is None else nn.Linear(embed_dim, q_rank, bias=bias, **where)
        self.q_norm = None if q_rank is None or norm is None else norm(q_rank, **where)
        q_features = embed_dim if q_rank is None else q_rank
        self.q_proj = nn.Linear(q_features, num_heads * (head_dim + rope_dim), bias=False, **where)
        self.kv_down = nn.Linear(embed_dim, kv_rank, bias=bias, **where)
        self.kv_norm = None if norm is None else norm(kv_rank, **where)
        self.k_rope_proj = nn.Linear(embed_dim, rope_dim, bias=bias, **where)
        self.k_proj = nn.Linear(kv_rank, num_heads * head_dim, bias=False, **where)
        self.v_proj = nn.Linear(kv_rank, num_heads * self.value_dim, bias=False, **where)
        self.out_proj = nn.Linear(num_heads * self.value_dim, embed_dim, bias=bias, **where)
        check_position(position, num_heads, rope_dim)
        self.position = position
        self.attend = Attend()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections without bias (Glorot & Bengio 2010), as :class:`MultiHeadAttention` starts."""
        for projection in self.children():
            if isinstance(projection, nn.Linear):
                start_linear(projection)

    def forward(
        self,
        x: Float[Tensor, "batch query embed"],
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | Bias | None = None,
        positions: Int[Tensor, "batch_or_1 query"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query embed"]:
        """Attend from ``x`` to itself, and to what came before it.

        Without a cache, every head's keys and values are made. With one, they are made only where that takes fewer
        multiplications (:meth:`absorbs`), as it does for a prefill; or where ``k_proj`` or ``v_proj`` is more than its
        weight (an adapter, a quantised layer, a hook), since only a call heeds that. Else ``attend`` sees the absorbed
        form: queries of kv_rank + rope_dim features, and one key/value head, whose values are c. Weights are the same
        in both.

        Args:
            x: (batch, queries, embed_dim).
            mask: what each query may see: an object of :mod:`multihead.masks`, or a boolean tensor, True where it may
                attend. With a cache the keys are all tokens so far.
            bias: added to the scores: a tensor that broadcasts to (batch, heads, queries, keys), or an object of
                :mod:`multihead.biases`.
            positions: (batch, queries), or (1, queries) for the whole batch: where the tokens of x stand; None: one
                after the other, behind those in the cache.
            cache: what the layer remembers of earlier tokens; x holds the tokens after these and is added to it. It
                holds one head of kv_rank + rope_dim features as keys, and values of none.

        Raises:
            ValueError, TypeError: tensors that do not fit; the message says which and how.

        Memory: the cache takes (kv_rank + rope_dim) · B · itemsize bytes a token. Keys and values that are made take
        H · (head_dim + rope_dim + value_dim) · B · itemsize a token, while the call lasts.
        """
        check_tokens("x", x, self.embed_dim, self.kv_down)
        places = places_of(x, self.position, positions, cache)
        q = self._queries(x, places)
        latent = self._latent(x, places)
        # the values are the first features of the keys, so there is nothing else to keep
        nothing = latent[..., :0]
        kv = KeysValues(latent, nothing, positions) if cache is None else cache.update(latent, nothing, positions)
        found = None if self.position is None else self.position.bias_between(positions, kv.positions)
        mask, bias = mask_and_bias(mask, bias, found, q, kv)
        absorbed = cache is not None and self._may_absorb(x) and self.absorbs(x.shape[1], kv.k.shape[2])
        q, k, v = self._absorbed(q, kv.k) if absorbed else self._expanded(q, kv.k)
        call = AttentionCall(
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            scale=default_scale(self.head_dim + self.rope_dim) if self.scale is None else self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        heads = self.attend(call)
        if absorbed:
            heads = heads @ self._by_head(self.v_proj).mT
        return self.out_proj(merge_heads(heads))

    def absorbs(self, queries: int, keys: int) -> bool:
        """Whether ``queries`` new tokens meet a cache that then holds ``keys`` in its own features.

        They do where that multiplies fewer numbers: a head's part of the projections is multiplied with each query
        rather than each key, but scores and sums run over kv_rank features rather than head_dim and value_dim. With
        DeepSeek's sizes that is up to about 170 queries against a long past. Override it to choose otherwise.

        >>> import multihead as mh
        >>> attn = mh.MultiHeadLatentAttention(64, 8, head_dim=128, rope_dim=64, kv_rank=512, device="meta")
        >>> attn.absorbs(1, 4096), attn.absorbs(160, 100_000), attn.absorbs(4096, 4096)
        (True, True, False)
        """
        widths = self.head_dim + self.value_dim
        in_latent = queries * self.kv_rank * widths + queries * keys * (2 * self.kv_rank + self.rope_dim)
        in_heads = keys * self.kv_rank * widths + queries * keys * (widths + self.rope_dim)
        return in_latent < in_heads

    def _queries(self, x: Tensor, places: Tensor) -> Float[Tensor, "batch head query dim"]:
        """Every head's queries: head_dim features, then rope_dim that are turned."""
        if self.q_down is not None:
            x = self.q_down(x)
            x = x if self.q_norm is None else normed(self.q_norm, x)
        q = split_heads(self.q_proj(x), self.num_heads)
        if self.position is None:
            return q
        still, turning = q.split((self.head_dim, self.rope_dim), -1)
        return torch.cat((still, self.position.turn(turning, places)), -1)

    def _latent(self, x: Tensor, places: Tensor) -> Float[Tensor, "batch 1 query latent"]:
        """What is remembered: c, then r."""
        c = self.kv_down(x)
        c = c if self.kv_norm is None else normed(self.kv_norm, c)
        r = self.k_rope_proj(x)[:, None]
        r = r if self.position is None else self.position.turn(r, places)
        return torch.cat((c[:, None], r), -1)

    def _expanded(self, q: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and every head's keys and values."""
        c, r = latent.split((self.kv_rank, self.rope_dim), -1)
        k = split_heads(self.k_proj(c[:, 0]), self.num_heads)
        v = split_heads(self.v_proj(c[:, 0]), self.num_heads)
        return q, torch.cat((k, r.expand(-1, self.num_heads, -1, -1)), -1), v

    def _absorbed(self, q: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries in the features of the latent, which is the one key; its c is the value."""
        still, turned = q.split((self.head_dim, self.rope_dim), -1)
        return torch.cat((still @ self._by_head(self.k_proj), turned), -1), latent, latent[..., : self.kv_rank]

    def _by_head(self, projection: nn.Linear) -> Float[Tensor, "head dim rank"]:
        return projection.weight.unflatten(0, (self.num_heads, -1))

    def _may_absorb(self, x: Tensor) -> bool:
        """Whether the projections of keys and values are their weights and nothing else, and these are at hand."""
        return all(
            # observing replaces forwards of instances and must not change the form, so these are not asked
            type(projection) is nn.Linear
            and type(projection.weight) is nn.Parameter
            and projection.bias is None
            and projection.weight.device == x.device
            and not projection._forward_hooks
            and not projection._forward_pre_hooks
            for projection in (self.k_proj, self.v_proj)
        )

    def extra_repr(self) -> str:
        """The sizes, as they appear in ``print(model)``."""
        names = ("embed_dim", "num_heads", "head_dim", "rope_dim", "kv_rank", "q_rank", "value_dim")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None)
