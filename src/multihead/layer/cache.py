"""What a layer remembers of earlier tokens, so that a step of decoding projects one token and not all of them.

===================  =====================================  =========================================================
cache                keeps                                  memory, with n tokens seen
===================  =====================================  =========================================================
``GrowingCache()``   every token                            2 · B · Hkv · D · itemsize · n, up to a quarter more
``FixedCache(c)``    every token, of at most c              the same with c for n, taken at once
``SlidingCache(w)``  what a window of w keys can still see  the same with w - 1 for n, and a quarter more, at least 16
===================  =====================================  =========================================================

A cache is one layer's, is filled by the layer that it is passed to, and is for inference: it writes in place.

>>> import torch, multihead as mh
>>> attn = mh.MultiHeadAttention(64, num_heads=8, num_kv_heads=2)
>>> x = torch.randn(1, 6, 64)
>>> cache = mh.GrowingCache()
>>> with torch.no_grad():
...     start = attn(x[:, :5], mask=mh.masks.causal(), cache=cache)     # prefill
...     step = attn(x[:, 5:], mask=mh.masks.causal(), cache=cache)      # one token
...     whole = attn(x, mask=mh.masks.causal())
>>> torch.allclose(torch.cat([start, step], 1), whole, atol=1e-6), cache.length
(True, 6)
"""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.conventions import checked_count, shape_of

SLACK = 16
"""Tokens of room beyond those needed, at least: so many steps pass before anything is moved."""


@dataclass(frozen=True, eq=False, slots=True)
class KeysValues:
    """Keys and values that a layer has projected already."""

    k: Float[Tensor, "batch kv_head key dim"]
    v: Float[Tensor, "batch kv_head key value_dim"]
    positions: Int[Tensor, "batch_or_1 key"] | None = None
    """Where the tokens stand, where the caller said so; None: one after the other."""
    dropped: int = 0
    """Tokens before the first of these that are no longer kept."""


class Cache(abc.ABC):
    """The keys and values of one layer's earlier tokens, in one stretch of memory.

    Make a :class:`GrowingCache`, a :class:`FixedCache` or a :class:`SlidingCache`, one for each layer.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, and free the memory."""
        self._k: Tensor | None = None
        self._v: Tensor | None = None
        self._positions: Tensor | None = None
        self._start = self._stop = 0
        self.dropped = 0
        """Tokens that were seen and are no longer kept."""

    @property
    def length(self) -> int:
        """Tokens seen so far, dropped ones included."""
        return self.dropped + self._stop - self._start

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        held = (self._k, self._v, self._positions)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def update(
        self,
        k: Float[Tensor, "batch kv_head token dim"],
        v: Float[Tensor, "batch kv_head token value_dim"],
        positions: Int[Tensor, "batch_or_1 token"] | None = None,
    ) -> KeysValues:
        """Add the next tokens, and return all that are kept together with them: views, valid until the next call.

        Raises:
            ValueError: they do not continue what is kept, there is no room, or they want a gradient.
        """
        self._check(k, v, positions)
        self._forget()
        tokens = k.shape[2]
        if self._k is None or self._stop + tokens > self._k.shape[2]:
            self._move(self._room(self._stop - self._start, tokens), k, v, positions)
        place = slice(self._stop, self._stop + tokens)
        for held, new in ((self._k, k), (self._v, v)):
            held[:, :, place] = new  # pyrefly: ignore[unsupported-operation]
        if self._positions is not None and positions is not None:
            self._positions[:, place] = positions
        self._stop += tokens
        return self._kept()

    def reorder(self, index: Int[Tensor, " sequence"]) -> None:
        """Let sequence i go on from what is now sequence ``index[i]``, as beam search does; the batch may grow."""
        kept = self._kept() if self._k is not None else None
        if kept is None:
            return
        index = index.to(kept.k.device)
        positions = kept.positions
        if positions is not None and positions.shape[0] != 1:
            positions = positions[index]
        self._start = self._stop = 0
        room = 0 if self._k is None else self._k.shape[2]
        self._k = self._v = self._positions = None
        self._move(room, kept.k[index], kept.v[index], positions, fill=True)

    def _forget(self) -> None:  # noqa: B027
        """Drop what no later query can see."""

    @abc.abstractmethod
    def _room(self, kept: int, tokens: int) -> int:
        """The tokens to make room for, where what there is does not suffice."""

    def _kept(self) -> KeysValues:
        assert self._k is not None and self._v is not None  # noqa: S101, PT018  called after something was kept
        place = slice(self._start, self._stop)
        positions = None if self._positions is None else self._positions[:, place]
        return KeysValues(self._k[:, :, place], self._v[:, :, place], positions, self.dropped)

    def _move(self, room: int, k: Tensor, v: Tensor, positions: Tensor | None, *, fill: bool = False) -> None:
        """Move what is kept to the start of ``room`` tokens; or, with ``fill``, put these tokens there."""
        kept = KeysValues(k, v, positions) if fill else self._kept() if self._k is not None else None
        buffers = [_empty(k, (*k.shape[:2], room, k.shape[3])), _empty(v, (*v.shape[:2], room, v.shape[3]))]
        if positions is not None:
            buffers.append(_empty(positions, (positions.shape[0], room)))
        tokens = 0 if kept is None else kept.k.shape[2]
        if kept is not None:
            buffers[0][:, :, :tokens] = kept.k
            buffers[1][:, :, :tokens] = kept.v
            if positions is not None and kept.positions is not None:
                buffers[2][:, :tokens] = kept.positions
        self._k, self._v = buffers[:2]
        self._positions = buffers[2] if positions is not None else None
        self._start, self._stop = 0, tokens

    def _check(self, k: Tensor, v: Tensor, positions: Tensor | None) -> None:
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise ValueError(
                "a cache keeps no gradients: call the layer under torch.no_grad() or torch.inference_mode()."
            )
        if self._k is None or self._v is None:
            return
        for name, new, held in (("k", k, self._k), ("v", v, self._v)):
            if new.shape[0] != held.shape[0]:
                raise ValueError(
                    f"{name} has batch {new.shape[0]} but the cache holds batch {held.shape[0]}: "
                    "make a new cache for another batch, or reorder(index) for beams."
                )
            if new.shape[1] != held.shape[1] or new.shape[3] != held.shape[3]:
                raise ValueError(
                    f"{name} {shape_of(new)} does not continue a cache of {held.shape[1]} heads of {held.shape[3]}: "
                    "each layer needs a cache of its own."
                )
            if new.dtype != held.dtype or new.device != held.device:
                raise ValueError(
                    f"{name} is {new.dtype} on {new.device} but the cache holds {held.dtype} on {held.device}: "
                    "make a new cache after moving or converting a layer."
                )
        if (positions is None) != (self._positions is None) and self.length:
            raise ValueError(
                "positions must be given with every call that fills a cache, or with none: "
                f"the {self.length} tokens before {'had none' if positions is not None else 'had theirs'}."
            )


class GrowingCache(Cache):
    """Every token, in memory that grows by a quarter when it is full."""

    def _room(self, kept: int, tokens: int) -> int:
        needed = kept + tokens
        # a prefill takes what it needs; steps that follow get room to grow
        return needed if not kept else needed + max(SLACK, needed // 4)


class FixedCache(Cache):
    """Every token, in memory for ``capacity`` tokens that is taken once.

    Args:
        capacity: the most tokens that it can hold.

    Raises:
        ValueError: on an update that does not fit any more; what is kept stays as it was.
    """

    def __init__(self, capacity: int) -> None:
        checked_count("capacity", capacity)
        self.capacity = capacity
        super().__init__()

    def _check(self, k: Tensor, v: Tensor, positions: Tensor | None) -> None:
        super()._check(k, v, positions)
        if self.length + k.shape[2] > self.capacity:
            raise ValueError(
                f"the cache is full: it has room for {self.capacity} tokens, holds {self.length}, and {k.shape[2]} "
                "more came; make a larger FixedCache, or a GrowingCache."
            )

    def _room(self, kept: int, tokens: int) -> int:  # noqa: ARG002
        return self.capacity


class SlidingCache(Cache):
    """What :func:`multihead.masks.sliding_window` of ``window`` keys can still see: the last ``window - 1`` tokens.

    Give the layer the mask that it would need without a cache; the part about dropped tokens is left out.

    Args:
        window: keys that a query sees, its own included.
    """

    def __init__(self, window: int) -> None:
        checked_count("window", window)
        self.window = window
        super().__init__()

    def update(
        self,
        k: Float[Tensor, "batch kv_head token dim"],
        v: Float[Tensor, "batch kv_head token value_dim"],
        positions: Int[Tensor, "batch_or_1 token"] | None = None,
    ) -> KeysValues:
        """Add the next tokens, and return them after those before that the first of them can see."""
        everything = super().update(k, v, positions)
        if k.shape[2] > self._slack:
            # a prefill is returned whole, but only its end is kept
            self._forget()
            kept = self._kept()
            self._move(self._room(0, 0), kept.k, kept.v, kept.positions, fill=True)
        return everything

    @property
    def _slack(self) -> int:
        return max(SLACK, self.window // 4)

    def _forget(self) -> None:
        surplus = max(self._stop - self._start - (self.window - 1), 0)
        self._start += surplus
        self.dropped += surplus

    def _room(self, kept: int, tokens: int) -> int:
        return max(kept + tokens, self.window - 1 + self._slack)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory that may be written in and out of inference mode."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return like.new_empty(shape)
    with torch.inference_mode(mode=False):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
