"""A host's dense mask, said again as the smallest mask object that says exactly the same.

A host hands over what its kernel takes: a boolean tensor, or a float tensor that is added to the scores. Nearly always
it is a causal mask, padding, a window or two of these together. Which one is read off the tensor and then proved by
comparing every element, a block of queries at a time, so nothing of the size Lq × Lk is made besides the host's own
tensor. Only where no compact mask says the same is a boolean copy kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from multihead.conventions import shape_of
from multihead.errors import UnsupportedAttentionError
from multihead.masks import Causal, Mask, Sizes, SlidingWindow, causal, dense, padding

BLOCK = 1 << 22
"""Elements of a mask that are looked at together."""

Sense = Literal["allowed", "hidden", "added"]
"""What a mask tensor says: True may attend, True may not attend, or a number added to the score."""


@dataclass(frozen=True)
class MaskFound:
    """What a dense mask turned out to be."""

    mask: Mask | None
    bias: Tensor | None = None
    """Where the tensor says more than yes and no: the tensor itself, four axes, to be added to the scores."""
    empty_row: bool = False
    """Whether some query sees nothing."""


def top_left_causal(sizes: Sizes) -> Mask | None:
    """What torch's ``is_causal`` says: query i sees keys 0 to i, whatever Lq and Lk are."""
    if sizes.queries == sizes.keys:
        return causal()
    return _window(None, sizes.queries - sizes.keys, sizes)


@dataclass
class MaskFinder:
    """Turns mask tensors into mask objects, the same tensor once: layers that share a mask then share the object.

    It keeps what it was given, so that no other tensor can come to lie at the same address; make one for each run.
    """

    _known: dict[tuple[object, ...], tuple[Tensor, MaskFound]] = field(default_factory=dict)
    _copies: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def find(self, tensor: Tensor, sense: Sense, sizes: Sizes) -> MaskFound:
        """The mask or the bias that says what ``tensor`` says.

        Args:
            tensor: broadcastable to (batch, heads, queries, keys), at most four axes.
            sense: what its elements mean.
            sizes: of the attention it belongs to.

        Raises:
            UnsupportedAttentionError: it does not broadcast, or is neither boolean nor floating-point.
        """
        source = _Source.of(tensor.detach(), sense, sizes)
        key = (*_identity(tensor), sense, sizes)
        if key in self._known:
            return self._known[key][1]
        found = source.found()
        if None not in key:
            self._known[key] = (tensor, found)
        return found

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy that nobody changes; the same one for the same tensor."""
        key = _identity(tensor)
        if None in key:
            return tensor.detach().clone()
        if key not in self._copies:
            self._copies[key] = (tensor, tensor.detach().clone())
        return self._copies[key][1]


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Two tensors with the same identity hold the same numbers, as long as both are alive; None in it: cannot say."""
    version = None if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, str(tensor.device), version)


@dataclass(frozen=True)
class _Source:
    """A mask tensor with four axes, axes that do not matter of size 1, read as True where a query may see a key."""

    tensor: Tensor
    sense: Sense
    sizes: Sizes

    @classmethod
    def of(cls, tensor: Tensor, sense: Sense, sizes: Sizes) -> "_Source":
        wanted = (sizes.batch, sizes.heads, sizes.queries, sizes.keys)
        kind = tensor.is_floating_point() if sense == "added" else tensor.dtype == torch.bool
        if not kind:
            raise UnsupportedAttentionError(f"its mask has dtype {tensor.dtype}, neither boolean nor floating-point")
        fits = tensor.ndim <= 4 and all(
            have in (1, want) for have, want in zip(reversed(tensor.shape), reversed(wanted), strict=False)
        )
        if not fits:
            raise UnsupportedAttentionError(f"its mask of shape {shape_of(tensor)} does not broadcast to {wanted}")
        tensor = tensor[(None,) * (4 - tensor.ndim)]
        for axis in range(4):
            if tensor.shape[axis] > 1 and tensor.stride(axis) == 0:
                tensor = tensor.narrow(axis, 0, 1)
        return cls(tensor, sense, sizes)

    def found(self) -> MaskFound:
        """The smallest equal mask."""
        if not self.tensor.numel():
            return MaskFound(None)
        source = self._without_equal_heads()
        spans = _Spans()
        for rows, allowed, boolean in source.blocks():
            if not boolean:
                return MaskFound(None, self.tensor)
            spans.add(rows, allowed, self.sizes, by_query=source.tensor.shape[2] > 1)
        if spans.empty_row and self.sense == "added" and not self._hides_by_infinity():
            return MaskFound(None, self.tensor, empty_row=True)
        return MaskFound(source._smallest(spans), empty_row=spans.empty_row)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """For each block: its queries, what they may see, and whether the numbers say no more than that."""
        batch, heads, queries, keys = self.tensor.shape
        step = max(1, BLOCK // (batch * heads * keys))
        for start in range(0, queries, step):
            block = self.tensor[:, :, start : start + step]
            rows = torch.arange(start, start + block.shape[2], device=block.device)
            if queries == 1:
                rows = torch.arange(self.sizes.queries, device=block.device)
            yield rows, *self._read(block)

    def _read(self, block: Tensor) -> tuple[Tensor, bool]:
        if self.sense == "allowed":
            return block, True
        if self.sense == "hidden":
            return ~block, True
        allowed = block == 0
        hidden = (block == -torch.inf) | (block == torch.finfo(block.dtype).min)
        return allowed, bool((allowed | hidden).all())

    def _hides_by_infinity(self) -> bool:
        """Whether hidden scores are -inf. Below a row of finite minima softmax is uniform, not empty."""
        return not bool((self.tensor == torch.finfo(self.tensor.dtype).min).any())

    def _without_equal_heads(self) -> "_Source":
        """The same source with one head, where all heads say the same."""
        first = self.tensor[:, :1]
        if self.tensor.shape[1] == 1 or not all(
            torch.equal(self.tensor[:, head : head + 1], first) for head in range(1, self.tensor.shape[1])
        ):
            return self
        return _Source(first, self.sense, self.sizes)

    def _smallest(self, spans: "_Spans") -> Mask | None:
        if self.tensor.shape[1] == 1 and self.tensor.shape[3] == self.sizes.keys:
            for candidate in spans.candidates(self.sizes):
                if self._says(candidate):
                    return candidate
        if spans.all_visible:
            return None
        return dense(torch.cat([allowed.clone() for _, allowed, _ in self.blocks()], 2))

    def _says(self, mask: Mask | None) -> bool:
        """Whether a mask says, element for element, what this tensor says."""
        keys = torch.arange(self.sizes.keys, device=self.tensor.device)
        for rows, allowed, _ in self.blocks():
            same = allowed if mask is None else mask.visible(rows, keys, self.sizes) == allowed
            if not bool(same.all()):
                return False
        return True


class _Spans:
    """What a mask looks like from afar: which keys anyone sees, and how far back and ahead queries see."""

    def __init__(self) -> None:
        self.valid: Tensor | None = None
        self.back: int | None = None
        self.ahead: int | None = None
        self.empty_row = False
        self.all_visible = True

    def add(self, rows: Tensor, allowed: Tensor, sizes: Sizes, *, by_query: bool) -> None:
        """Take a block of queries in; ``by_query``: whether they differ in what they see."""
        visible = allowed.any(2)
        self.valid = visible if self.valid is None else self.valid | visible
        self.all_visible = self.all_visible and bool(allowed.all())
        seen = allowed.any(-1)
        self.empty_row = self.empty_row or not bool(seen.all())
        if not by_query or allowed.shape[3] == 1:
            return
        numbers = allowed.to(torch.uint8)
        first = numbers.argmax(-1)
        last = allowed.shape[3] - 1 - numbers.flip(-1).argmax(-1)
        position = rows + sizes.offset
        lowest = torch.iinfo(torch.int64).min
        back = int((position - first).masked_fill(~seen, lowest).max())
        ahead = int((last - position).masked_fill(~seen, lowest).max())
        self.back = back if self.back is None else max(self.back, back)
        self.ahead = ahead if self.ahead is None else max(self.ahead, ahead)

    def candidates(self, sizes: Sizes) -> Iterator[Mask | None]:
        """Masks that might say the same, the simplest first."""
        if self.all_visible:
            yield None
            return
        if self.valid is None:
            return
        for left, right in ((None, None), (None, self.ahead), (self.back, None), (self.back, self.ahead)):
            window = _window(left, right, sizes)
            real = self._padding(left, right, sizes)
            if window is None or real is None:
                yield real if window is None else window
            else:
                yield window & real

    def _padding(self, left: int | None, right: int | None, sizes: Sizes) -> Mask | None:
        """Padding that hides the keys nobody sees, unless the window alone keeps everyone from them."""
        assert self.valid is not None  # noqa: S101  asked only once there is something to ask about
        valid = self.valid[:, 0]
        keys = torch.arange(sizes.keys, device=valid.device)
        reached = torch.ones_like(keys, dtype=torch.bool)
        if left is not None:
            reached &= keys >= sizes.offset - left
        if right is not None:
            reached &= keys <= sizes.keys - 1 + right
        valid = valid | (valid | ~reached).all(-1, keepdim=True)
        return None if bool(valid.all()) else padding(valid)


def _window(left: int | None, right: int | None, sizes: Sizes) -> Mask | None:
    """Keys from ``left`` before a query's position to ``right`` after it, in the plainest form; None hides nothing.

    A window that ends before the query's position is what another one, which starts there, does not show.
    """
    if left is not None and left >= sizes.keys - 1:
        left = None
    if right is not None and right >= sizes.keys - 1 - sizes.offset:
        right = None
    if right is not None and right < 0:
        ends = ~SlidingWindow(-right - 1, None)
        start = _window(left, None, sizes)
        return ends if start is None else start & ends
    if left is not None and left < 0:
        starts = ~SlidingWindow(None, -left - 1)
        return starts if right is None else SlidingWindow(None, right) & starts
    if left is None and right is None:
        return None
    return Causal() if (left, right) == (None, 0) else SlidingWindow(left, right)
