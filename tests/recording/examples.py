"""Recordings to test with, made from calls as the lens makes them."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, Statistics
from multihead.kernels import measure
from multihead.masks import Mask
from multihead.recording import Layer, Recording
from tests.accuracy import SIZES, random_call

LIGHT = Statistics()

TOKENS = ["[CLS]", "they", "are", "mak", "##ing", "govern", "##ments", "less", "un", "##govern", "[SEP]"]
"""As many as there are keys in the standard sizes."""


def selected(
    call: AttentionCall,
    *,
    index: int = 0,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    statistics: Statistics = LIGHT,
    **changes: object,
) -> Layer:
    """The layer that holds some heads and queries of a call."""
    heads = tuple(range(call.sizes.heads)) if heads is None else tuple(heads)
    places = None if queries is None else torch.tensor(queries, dtype=torch.int64)
    order = None if places is None else places.argsort()
    _, seen = measure(call, statistics, queries=None if places is None else places[order])
    found = {}
    for name, tensor in seen.named().items():
        per_head = tensor.ndim > 1 and tensor.shape[1] == call.sizes.heads
        found[name] = tensor[:, list(heads)] if per_head else tensor
        if order is not None and name in ("lse", "max_score", "entropy", "visible", "top_weights", "top_keys", "sink"):
            found[name] = found[name][:, :, order.argsort()]
    kv_heads = sorted({head // call.group for head in heads}, reverse=True)
    rows = slice(None) if places is None else places
    bias = call.bias
    if bias is not None:
        bias = bias if bias.shape[1] == 1 else bias[:, list(heads)]
        bias = bias if bias.shape[2] == 1 else bias[:, :, rows]
    fields = {
        "index": index,
        "name": f"encoder.{index}",
        "host": "sdpa",
        "sizes": call.sizes,
        "heads": heads,
        "queries": None if queries is None else tuple(queries),
        "kv_heads": tuple(kv_heads.index(head // call.group) for head in heads),
        "scale": call.scale,
        "softcap": call.softcap,
        "mask": call.mask,
        "bias": bias,
        "sinks": None if call.sinks is None else call.sinks[list(heads)],
        "statistics": Measurements(**found),
        "q": call.q[:, list(heads)][:, :, rows],
        "k": call.k[:, kv_heads],
    }
    return Layer(**fields | changes)


def recording_of(*layers: Layer, tokens: Sequence[str] | None = None) -> Recording:
    """A recording whose every sequence has the same tokens."""
    layers = layers or (selected(random_call(queries=SIZES["keys"])),)
    tokens = TOKENS if tokens is None else tokens
    return Recording(layers, {"text": [list(tokens)] * layers[0].sizes.batch}, {"model": "Toy", "date": "today"})


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits, NaN included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def same_mask(one: Mask | None, other: Mask | None) -> bool:
    """Whether two masks are trees of the same kinds with the same numbers and tensors."""
    if type(one) is not type(other):
        return False
    if one is None:
        return True
    for field in (field for field in dataclasses.fields(one) if field.compare):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Tensor):
            equal = same_bits(mine, theirs)
        elif isinstance(mine, Mask):
            equal = same_mask(mine, theirs)
        else:
            equal = mine == theirs
        if not equal:
            return False
    return True


def difference(one: Recording, other: Recording) -> str | None:
    """What two recordings differ in, None if they are the same, bit for bit."""
    if {name: [list(t) for t in s] for name, s in one.texts.items()} != other.texts:
        return "texts"
    if dict(one.provenance) != dict(other.provenance):
        return "provenance"
    if len(one) != len(other):
        return "layers"
    return next(filter(None, map(_layer_difference, one, other)), None)


def _layer_difference(mine: Layer, theirs: Layer) -> str | None:
    later = ("q", "k", "weights", "bias", "sinks", "statistics", "mask")
    for field in dataclasses.fields(Layer):
        if field.name not in later and getattr(mine, field.name) != getattr(theirs, field.name):
            return field.name
    if not same_mask(mine.mask, theirs.mask):
        return "mask"
    held, found = mine.tensors(), theirs.tensors()
    if held.keys() != found.keys():
        return "tensors"
    return next((name for name, tensor in held.items() if not same_bits(tensor, found[name])), None)


class Parts:
    """A recording's file taken apart, to be changed and put together again with checksums that fit."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        self.outer = json.loads(content[8 : 8 + length])
        self.inner = json.loads(self.outer["__metadata__"]["recording"])
        self.data = bytearray(content[8 + length :])

    def tensor(self, name: str) -> memoryview:
        """The bytes of one tensor, to be changed in place."""
        start, stop = self.outer[name]["data_offsets"]
        return memoryview(self.data)[start:stop]

    def write(self, path: Path, *, text: str | None = None) -> None:
        """Put together; ``text`` stands in for the recording's own header."""
        listed = self.inner["tensors"]
        for name, entry in listed.items() if isinstance(listed, dict) else ():
            if name in self.outer and isinstance(entry, dict):
                entry["crc32"] = zlib.crc32(self.tensor(name))
        text = json.dumps(self.inner) if text is None else text
        metadata = self.outer["__metadata__"]
        metadata["recording"], metadata["crc32"] = text, f"{zlib.crc32(text.encode()):08x}"
        outer = json.dumps(self.outer).encode()
        outer += b" " * (-len(outer) % 8)
        path.write_bytes(len(outer).to_bytes(8, "little") + outer + self.data)


def forged(path: Path, change: Callable[[Parts], object]) -> Path:
    """A copy of a recording's file with something changed and the checksums made to fit."""
    parts = Parts(path)
    change(parts)
    target = path.with_name("forged.safetensors")
    parts.write(target)
    return target
