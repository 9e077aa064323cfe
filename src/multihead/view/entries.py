"""The layers of a page that carries all it shows: their numbers as the data of ``docs/page-format.md``."""

import base64
import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multihead import masks
from multihead.front.document import CELLS, WEIGHTS, Node, Placement, named_entry, placement, plain, quantised, shrunk
from multihead.masks import Mask
from multihead.recording import Layer
from multihead.recording.whole import blocks_of, sink_of
from multihead.view.blocks import BlockMaps, block_maps
from multihead.view.codec import Encoded
from multihead.view.rounded import Rounded


@dataclass(frozen=True)
class Compression:
    """How zlib looks at an array."""

    strategy: int
    memory: int
    """zlib's memLevel: one lower, half as many bytes share a code."""


PLAIN = Compression(zlib.Z_DEFAULT_STRATEGY, 8)
NOISE = Compression(zlib.Z_RLE, 5)
"""For numbers in which nothing comes twice: codes that follow them closely, and no search. A third of the time."""


class Data:
    """The binary block: arrays go in, references come out."""

    def __init__(self) -> None:
        # RFC 1950: a header, deflate's blocks, which each array begins anew, and a checksum of all
        self._compressed = bytearray(b"\x78\x9c")
        self._checksum = zlib.adler32(b"")
        self._length = 0

    def add(self, array: np.ndarray | Tensor, dtype: str, *, like: Compression = PLAIN) -> Node:
        """Append an array as one of f64, f32, i32, u16 and u8; its reference."""
        values = plain(np.asarray(array), dtype)
        reference: Node = {"offset": self._length, "dtype": dtype, "shape": list(values.shape)}
        raw = values.tobytes()
        raw += bytes(-len(raw) % 8)
        compressor = zlib.compressobj(6, zlib.DEFLATED, -15, like.memory, like.strategy)
        self._compressed += compressor.compress(raw) + compressor.flush(zlib.Z_FULL_FLUSH)
        self._checksum = zlib.adler32(raw, self._checksum)
        self._length += len(raw)
        return reference

    def compressed(self) -> bytes:
        """All of it, as zlib writes it."""
        last = zlib.compressobj(wbits=-15).flush()
        return bytes(self._compressed) + last + self._checksum.to_bytes(4, "big")

    def base64(self) -> str:
        """All of it, compressed, for what may be quoted in JSON."""
        return base64.b64encode(self.compressed()).decode("ascii")


def sevens(data: bytes) -> str:
    r"""Bytes as seven bits a character, the highest first; the three that a page's script cannot hold stand 256 higher.

    An eighth shorter than base64 in a file, twice as long where JSON quotes it. The last character is filled up with
    zeros.

    >>> [ord(character) for character in sevens(b"\xff\x00\x00")]
    [127, 64, 256, 256]
    """
    groups = np.frombuffer(data + bytes(-len(data) % 7), np.uint8).reshape(-1, 7)
    text = np.empty((len(groups), 8), np.uint8)
    text[:, 0] = groups[:, 0] >> 1
    for place in range(1, 7):
        text[:, place] = (groups[:, place - 1] << (7 - place) | groups[:, place] >> (place + 1)) & 127
    text[:, 7] = groups[:, 6] & 127
    found = text.tobytes()[: -(-8 * len(data) // 7)].decode("ascii")
    for character in "\0\r<":
        found = found.replace(character, chr(ord(character) + 256))
    return found


def layer_entry(layer: Layer, encoded: Encoded | Rounded, texts: dict[str, list[str]], item: int, data: Data) -> Node:
    """One layer of the document; its arrays go into ``data``."""
    where = placement(layer, texts)
    maps = block_maps(layer, item)
    cells, peak = quantised(overview(layer, item, maps))
    return {
        **named_entry(layer, where, texts),
        **_numbers(encoded, data),
        "mask": _mask_node(layer.mask, layer, where, item, data),
        "sink": _optional(sink_of(layer, item), data),
        "entropy": _optional(_entropy(layer, item), data),
        "overview": data.add(cells, "u8"),
        "overview_peak": data.add(peak, "f32"),
        "blocks": None if maps is None else _blocks_node(maps, data),
    }


def _blocks_node(maps: BlockMaps, data: Data) -> Node:
    means, peaks = maps.coded()
    return {"side": maps.side, "mean": data.add(means, "u8"), "max": data.add(peaks, "u8")}


def _numbers(encoded: Encoded | Rounded, data: Data) -> Node:
    """What a page computes weights from, or the weights themselves."""
    absent: Node = dict.fromkeys(WEIGHTS)
    if isinstance(encoded, Rounded):
        return absent | {"weights": data.add(encoded.weights, "u16")}
    return absent | {
        "q": data.add(encoded.q, "u8", like=NOISE),
        "k": data.add(encoded.k, "u8", like=NOISE),
        "q_shift": data.add(encoded.q_shift, "u8"),
        "k_shift": data.add(encoded.k_shift, "u8"),
        "steps": data.add(encoded.steps, "f64"),
        "lse": data.add(encoded.lse, "f64"),
        "bias": None if encoded.bias is None else data.add(encoded.bias, "f32"),
    }


def _optional(tensor: Tensor | None, data: Data) -> Node | None:
    return None if tensor is None else data.add(tensor.detach().cpu().float().numpy(), "f32")


def _entropy(layer: Layer, item: int) -> Tensor | None:
    """What was recorded beside weights that were given; from q and k a row's is computed with the row."""
    return (
        layer.statistics.entropy[item] if layer.weights is not None and layer.statistics.entropy is not None else None
    )


def _mask_node(mask: Mask | None, layer: Layer, where: Placement, item: int, data: Data) -> Node | None:
    """A mask as the contract's tree, None where it hides nothing."""

    def child(of: Mask) -> Node:
        # inside a tree, "sees everything" has to be said
        return _mask_node(of, layer, where, item, data) or {"kind": "sliding_window", "left": None, "right": None}

    match mask:
        case None:
            return None
        case masks.Causal():
            return {"kind": "causal"}
        case masks.SlidingWindow(left, right):
            return {"kind": "sliding_window", "left": left, "right": right}
        case masks.Prefix(length):
            return {"kind": "prefix", "length": length}
        case masks.Padding(valid):
            chosen = _of_item(valid, item)
            return None if chosen.all() else {"kind": "padding", "valid": data.add(chosen.numpy(), "u8")}
        case masks.Documents(queries, keys):
            query, key = _of_item(queries, item), _of_item(keys, item)
            query, key = _numbered(torch.cat([query, key])).split([len(query), len(key)])
            front = torch.full((where.before,), -1)
            return {
                "kind": "documents",
                "query": data.add(torch.cat([front, query]), "i32"),
                "key": data.add(key, "i32"),
            }
        case masks.And(left, right) | masks.Or(left, right):
            kind = "and" if isinstance(mask, masks.And) else "or"
            return {"kind": kind, "left": child(left), "right": child(right)}
        case masks.Not(inner):
            return {"kind": "not", "mask": child(inner)}
        case _:
            return _dense_node(mask, layer, where, item, data)


def _dense_node(mask: Mask, layer: Layer, where: Placement, item: int, data: Data) -> Node | None:
    """Any mask as bits; axes along which nothing changes have size 1."""
    seen = _of_item(mask.visible(torch.arange(layer.sizes.queries), torch.arange(layer.sizes.keys), layer.sizes), item)
    if seen.shape[0] != 1:
        seen = seen[list(layer.heads)]
    for axis in range(3):
        first = seen.narrow(axis, 0, min(1, seen.shape[axis]))
        if torch.equal(seen, first.expand_as(seen)):
            seen = first
    if seen.all():
        return None
    if seen.shape[1] != 1 and where.before:
        seen = torch.cat([seen.new_zeros(seen.shape[0], where.before, seen.shape[2]), seen], dim=1)
    bits = np.packbits(seen.numpy().reshape(-1), bitorder="little")
    return {"kind": "dense", "bits": data.add(bits, "u8"), "shape": list(seen.shape)}


def _of_item(tensor: Tensor, item: int) -> Tensor:
    return tensor[item if tensor.shape[0] != 1 else 0].detach().cpu()


def _numbered(ids: Tensor) -> Tensor:
    """The same groups numbered from 0, so that they fit 32 bits."""
    return torch.unique(ids, return_inverse=True)[1]


def overview(layer: Layer, item: int, maps: BlockMaps | None = None) -> np.ndarray:
    """(H, R, C) mean weights of at most CELLS × CELLS cells a head: as recorded if they are there, else measured."""
    recorded = layer.statistics.blocks
    if recorded is not None:
        means = recorded[item]
    elif maps is not None:
        means = maps.means
    else:
        lengths = (layer.query_count, layer.sizes.keys)
        height, width = (max(1, math.ceil(length / CELLS)) for length in lengths)
        means, _ = blocks_of(layer, item, (height, width))
    return _shrunk(means)


def sampled_overview(layer: Layer, item: int, rows: int) -> np.ndarray:
    """(H, R, C) as :func:`overview`, with ``rows`` evenly spaced queries standing for each row of cells."""
    height = max(1, math.ceil(layer.query_count / CELLS))
    bands = torch.arange(layer.query_count).split(height)
    sampled = torch.cat([band[:: max(1, len(band) // rows)][:rows] for band in bands])
    width = max(1, math.ceil(layer.sizes.keys / CELLS))
    return _shrunk(blocks_of(layer, item, (rows, width), queries=sampled)[0])


def _shrunk(blocks: Tensor) -> np.ndarray:
    blocks = blocks.detach().cpu()
    return shrunk((blocks.float() if blocks.dtype == torch.bfloat16 else blocks).numpy())
