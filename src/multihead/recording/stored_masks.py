"""Masks as JSON: a list of nodes in which a mask names its parts by their place before it.

So a part that several masks share is stored once. Tensors stand apart, by number; a boolean dense mask is packed to
bits, least significant first, and axes along which it repeats are stored once. Reading checks kinds, shapes, depth and
size before any tensor is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from multihead.masks import And, Causal, Dense, Documents, Mask, Not, Or, Padding, Prefix, SlidingWindow
from multihead.precision import dtype_named
from multihead.recording.schema import Fields, StoredTensor, checked_shape, expands, listed, shared_name
from multihead.recording.shapes import is_signed

DEEPEST = 100
"""A mask nests no deeper than this."""
MOST = 10_000
"""A mask written out as a tree has no more nodes than this."""

_COMBINED: dict[str, Callable[..., Mask]] = {"and": And, "or": Or, "not": Not}

Store = Callable[[Tensor], int]
"""Keeps a tensor for the file and says its number."""
Node = dict[str, object]


def collapsed(tensor: Tensor) -> Tensor:
    """The tensor with each axis along which it repeats by broadcasting (stride 0) shortened to 1."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def pack(allowed: Tensor) -> Tensor:
    """A boolean tensor as bits, least significant first, in a row of bytes."""
    return torch.from_numpy(np.packbits(allowed.cpu().contiguous().numpy().reshape(-1), bitorder="little"))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`pack`."""
    flags = np.unpackbits(bits.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(flags).view(torch.bool).view(shape)


def _signed(numbers: Tensor) -> Tensor:
    # document numbers are signed on the way in and out; whoever has them otherwise loses nothing
    return numbers if numbers.dtype.is_signed else numbers.long()


class MaskWriter:
    """Turns masks into nodes; one that comes twice is written once."""

    def __init__(self, keep: Store, keep_bits: Store) -> None:
        self.nodes: list[Node] = []
        self._places: dict[int, int] = {}
        self._keep, self._keep_bits = keep, keep_bits

    def add(self, mask: Mask, depth: int = 1) -> int:
        """The place of a mask's node.

        Raises:
            ValueError: it is of a kind that is defined elsewhere, or nested too deep.
        """
        if depth > DEEPEST:
            raise ValueError(f"a mask is nested deeper than {DEEPEST}")
        if id(mask) not in self._places:
            node = self._node(mask, depth)
            self.nodes.append(node)
            self._places[id(mask)] = len(self.nodes) - 1
        return self._places[id(mask)]

    def _node(self, mask: Mask, depth: int) -> Node:
        match mask:
            case Causal():
                return {"kind": "causal"}
            case SlidingWindow(left, right):
                return {"kind": "sliding_window", "left": left, "right": right}
            case Padding(valid):
                return {"kind": "padding", "valid": self._keep(valid)}
            case Documents(queries, keys):
                return {"kind": "documents", "queries": self._keep(_signed(queries)), "keys": self._keep(_signed(keys))}
            case Prefix(length):
                return {"kind": "prefix", "length": length}
            case Dense(allowed):
                stored = list(collapsed(allowed).shape)
                return {
                    "kind": "dense",
                    "allowed": self._keep_bits(allowed),
                    "stored": stored,
                    "shape": list(allowed.shape),
                }
            case And(left, right) | Or(left, right):
                kind = "and" if isinstance(mask, And) else "or"
                return {"kind": kind, "left": self.add(left, depth + 1), "right": self.add(right, depth + 1)}
            case Not(inner):
                return {"kind": "not", "mask": self.add(inner, depth + 1)}
            case _:
                raise ValueError(
                    f"a mask of kind {type(mask).__name__} cannot be stored: combine those of multihead.masks"
                )


class MaskReader:
    """Turns nodes back into masks, each when it is asked for; a part that several masks share is one object.

    Args:
        nodes: as the header has them.
        tensors: what the header says of the tensors.
        read: gives a tensor by its name; None: the masks hold no data, only shapes, which is enough to check them.
    """

    def __init__(
        self, nodes: Sequence[Fields], tensors: Mapping[str, StoredTensor], read: Callable[[str], Tensor] | None = None
    ) -> None:
        self._nodes, self._tensors, self._read = nodes, tensors, read
        self._masks: dict[int, Mask] = {}

    def check(self) -> None:
        """Raise ``ValueError`` where a node is of unknown kind, names a part not before it, or nests too deep."""
        costs: list[tuple[int, int]] = []
        for place, node in enumerate(self._nodes):
            parts = [costs[part] for part in self._parts(place)]
            depth, size = 1 + max((part[0] for part in parts), default=0), 1 + sum(part[1] for part in parts)
            if depth > DEEPEST or size > MOST:
                raise ValueError(f"{node.where} is nested deeper than {DEEPEST} or has more than {MOST} parts")
            costs.append((depth, size))
            self.mask(place)

    def mask(self, place: int) -> Mask:
        """The mask of one node."""
        if not 0 <= place < len(self._nodes):
            raise ValueError(f"mask {place} is missing")
        if place not in self._masks:
            node = self._nodes[place]
            kind, parts = node["kind"].text(), [self.mask(part) for part in self._parts(place)]
            self._masks[place] = _COMBINED[kind](*parts) if parts else self._leaf(kind, node)
        return self._masks[place]

    def _parts(self, place: int) -> list[int]:
        node = self._nodes[place]
        names = {"and": ("left", "right"), "or": ("left", "right"), "not": ("mask",)}.get(node["kind"].text(), ())
        parts = [node[name].integer() for name in names]
        if any(part >= place for part in parts):
            raise ValueError(f"{node.where} names mask {max(parts)}, which does not come before it")
        return parts

    def _leaf(self, kind: str, node: Fields) -> Mask:
        match kind:
            case "causal":
                return Causal()
            case "sliding_window":
                sides = (node[name].optional() for name in ("left", "right"))
                return SlidingWindow(*(None if side is None else side.integer() for side in sides))
            case "prefix":
                return Prefix(node["length"].integer())
            case "padding":
                return Padding(self._tensor(node["valid"], boolean=True))
            case "documents":
                return Documents(
                    self._tensor(node["queries"], boolean=False), self._tensor(node["keys"], boolean=False)
                )
            case "dense":
                return Dense(self._dense(node))
            case _:
                raise ValueError(f"{node.where} is a mask of unknown kind {kind!a:.40}")

    def _tensor(self, number: Fields, *, boolean: bool) -> Tensor:
        name = shared_name(number)
        shape, dtype = listed(self._tensors, name).form
        fits = dtype == "torch.bool" if boolean else is_signed(dtype)
        if len(shape) != 2 or not fits:
            wanted = "booleans" if boolean else "signed integers"
            raise ValueError(
                f"{number.where}: tensor {name}, {shape} of {dtype}, where a mask needs {wanted} with two axes"
            )
        return torch.empty(shape, dtype=dtype_named(dtype), device="meta") if self._read is None else self._read(name)

    def _dense(self, node: Fields) -> Tensor:
        name = shared_name(node["allowed"])
        shape, dtype = listed(self._tensors, name).form
        stored, wanted = checked_shape(node["stored"]), checked_shape(node["shape"])
        if (
            dtype != "torch.uint8"
            or shape != (-(-math.prod(stored) // 8),)
            or len(wanted) != 4
            or not expands(stored, wanted)
        ):
            raise ValueError(
                f"{node.where}: tensor {name}, {shape} of {dtype}, does not hold the bits of a mask {wanted}"
            )
        if self._read is None:
            return torch.empty(stored, dtype=torch.bool, device="meta").expand(wanted)
        return unpack(self._read(name), stored).expand(wanted)
