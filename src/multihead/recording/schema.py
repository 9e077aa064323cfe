"""The header of a recording's file: from JSON text to plain objects, with every name, number and shape checked.

What a file says is never believed: numbers are bounded, shapes are compared with the tensors that are really there,
masks may nest only so deep, and nothing is allocated by what the header claims.

Schema 1 is a JSON object::

    texts       {name: [[token, ...] for each sequence]}
    provenance  {text: text}
    masks       [node, ...], see ``stored_masks``
    layers      [{index, name, host, sizes: [batch, heads, queries, keys], heads, queries, kv_heads, scale, softcap,
                  mask, bias, query_text, key_text, tensors: [name, ...], nonfinite: [name, ...]}, ...]
    tensors     {name: {dtype, shape, crc32}}

Schema 2 is the same with ``weights`` among a layer's tensors. A file says the oldest schema that knows all it holds.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from multihead.recording.outline import LayerOutline
from multihead.recording.shapes import Form, check_forms, layer_axes
from multihead.sizes import Sizes

FORMAT = "multihead-recording"
SCHEMA = 2
"""The newest schema: what is read here."""

LARGEST = 1 << 40
"""No size or number in a header may exceed this."""
MOST_ENTRIES = 1 << 50
"""No tensor has more entries than this, repeated ones counted."""

_SINCE = {"weights": 2}

DTYPES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
    "I64": "torch.int64",
    "I32": "torch.int32",
    "I16": "torch.int16",
    "I8": "torch.int8",
    "U8": "torch.uint8",
    "BOOL": "torch.bool",
}
"""The names of the dtypes that a recording may hold, by safetensors' names."""


@dataclass(frozen=True)
class StoredTensor:
    """What the header says of one tensor."""

    form: Form
    crc32: int


@dataclass(frozen=True)
class StoredBias:
    """A bias and the shape it is broadcast to: axes along which it repeats are stored once."""

    tensor: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerHeader:
    """All of a layer but its tensors."""

    layer: LayerOutline
    """Its numbers and names."""
    mask: int | None
    """Which of the masks; None for none."""
    bias: StoredBias | None
    tensors: dict[str, str]
    """The tensor's name in the file, by the names that ``layer_axes`` knows."""
    nonfinite: tuple[str, ...]
    """Those of q and k that hold NaN or inf, where no query sees them."""


@dataclass(frozen=True)
class Header:
    """What a file's header says."""

    texts: dict[str, list[list[str]]]
    provenance: dict[str, str]
    masks: list["Fields"]
    layers: tuple[LayerHeader, ...]
    tensors: dict[str, StoredTensor]


class Fields:
    """A JSON value, taken apart with its type checked at each step; it says where it stands when something is wrong."""

    def __init__(self, value: object, where: str = "the header") -> None:
        self.value, self.where = value, where

    def _wrong(self, expected: str) -> ValueError:
        return ValueError(f"{self.where} is no {expected}")

    def __getitem__(self, key: str) -> "Fields":
        if not isinstance(self.value, dict):
            raise self._wrong("object")
        if key not in self.value:
            raise ValueError(f"{self.where} has no {key!r}")
        return Fields(self.value[key], key if self.where == "the header" else f"{self.where}.{key}")

    def items(self) -> list[tuple[str, "Fields"]]:
        """The members of an object."""
        if not isinstance(self.value, dict):
            raise self._wrong("object")
        return [(key, Fields(value, f"{self.where}[{key!a:.40}]")) for key, value in self.value.items()]

    def entries(self) -> list["Fields"]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self._wrong("list")
        return [Fields(value, f"{self.where}[{place}]") for place, value in enumerate(self.value)]

    def optional(self) -> "Fields | None":
        """None for null."""
        return None if self.value is None else self

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self._wrong("text")
        return self.value

    def texts(self) -> list[str]:
        """A list of strings."""
        if not isinstance(self.value, list) or not all(isinstance(value, str) for value in self.value):
            raise self._wrong("list of texts")
        return self.value

    def integer(self, low: int = 0, high: int = LARGEST) -> int:
        """A whole number between two bounds, inclusive."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self._wrong("whole number")
        if not low <= self.value <= high:
            raise ValueError(f"{self.where} is out of range: {low} to {high}")
        return self.value

    def integers(self) -> tuple[int, ...]:
        """A list of whole numbers, none negative."""
        return tuple(entry.integer() for entry in self.entries())

    def number(self) -> float:
        """A finite number, no larger than ``LARGEST``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self._wrong("finite number")
        if not -LARGEST <= self.value <= LARGEST:
            raise ValueError(f"{self.where} is out of range: {-LARGEST} to {LARGEST}")
        return float(self.value)


def parse(text: str, forms: Mapping[str, Form]) -> Header:
    """A header from its JSON text, compared with the tensors that the file really holds.

    Raises:
        ValueError: anything is not as it should be; the message is the bare fact.
    """
    try:
        root = Fields(json.loads(text, parse_constant=_refuse_constant))
    except RecursionError as error:
        raise ValueError("the header is nested too deep") from error
    tensors = {name: _tensor(fields, name, forms) for name, fields in root["tensors"].items()}
    return Header(
        texts={name: [tokens.texts() for tokens in sequences.entries()] for name, sequences in root["texts"].items()},
        provenance={name: value.text() for name, value in root["provenance"].items()},
        masks=root["masks"].entries(),
        layers=tuple(_layer(fields, tensors) for fields in root["layers"].entries()),
        tensors=tensors,
    )


def checked_shape(shape: Fields) -> tuple[int, ...]:
    """Sizes of a tensor, no more than eight of them, whose product is a possible number of entries."""
    sizes = shape.integers()
    if len(sizes) > 8 or math.prod(max(1, size) for size in sizes) > MOST_ENTRIES:
        raise ValueError(f"{shape.where} is no possible shape")
    return sizes


def _refuse_constant(word: str) -> object:
    raise ValueError(f"the header holds {word}, which is no JSON")


def _tensor(fields: Fields, name: str, forms: Mapping[str, Form]) -> StoredTensor:
    dtype = fields["dtype"].text()
    if dtype not in DTYPES:
        raise ValueError(f"{fields.where}.dtype is none of {', '.join(DTYPES)}")
    form = checked_shape(fields["shape"]), DTYPES[dtype]
    if name not in forms:
        raise ValueError(f"tensor {name!a:.80} is missing")
    if forms[name] != form:
        raise ValueError(
            f"tensor {name!a:.80} is {forms[name][0]} of {forms[name][1]}, but the header says {form[0]} of {form[1]}"
        )
    return StoredTensor(form, fields["crc32"].integer(0, 0xFFFFFFFF))


def _layer(fields: Fields, tensors: Mapping[str, StoredTensor]) -> LayerHeader:
    sizes = fields["sizes"].integers()
    if len(sizes) != 4 or max(sizes) > 1 << 31:
        raise ValueError(f"{fields.where}.sizes are no four possible sizes (batch, heads, queries, keys)")
    index = fields["index"].integer()
    softcap, queries, mask, bias = (fields[name].optional() for name in ("softcap", "queries", "mask", "bias"))
    layer = LayerOutline(
        index=index,
        name=fields["name"].text(),
        host=fields["host"].text(),
        sizes=Sizes(*sizes),
        heads=fields["heads"].integers(),
        queries=None if queries is None else queries.integers(),
        kv_heads=fields["kv_heads"].integers(),
        scale=fields["scale"].number(),
        softcap=None if softcap is None else softcap.number(),
        query_text=fields["query_text"].text(),
        key_text=fields["key_text"].text(),
    )
    names = fields["tensors"].texts()
    for name in names:
        _check_own(name, fields.where)
    held = {name: f"layers.{index}.{name}" for name in names}
    header = LayerHeader(
        layer=layer,
        mask=None if mask is None else mask.integer(),
        bias=None if bias is None else StoredBias(shared_name(bias["tensor"]), checked_shape(bias["shape"])),
        tensors=held,
        nonfinite=tuple(fields["nonfinite"].texts()),
    )
    _check_layer(header, tensors, fields.where)
    return header


def _check_own(name: str, where: str) -> None:
    """Whether a tensor is one that belongs to a layer; a bias may be shared by several."""
    known = name != "bias"
    try:
        layer_axes(name)
    except KeyError:
        known = False
    if not known:
        raise ValueError(f"{where}.tensors names {name!a:.80}, which no layer has")


def shared_name(number: Fields) -> str:
    """The name in the file of a tensor that several layers or masks may share."""
    return f"shared.{number.integer()}"


def _check_layer(header: LayerHeader, tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Whether the tensors of a layer belong together; nothing is read for it."""
    forms: dict[str, Form] = {}
    for name, stored in header.tensors.items():
        forms[name] = listed(tensors, stored).form
    if header.bias is not None:
        (shape, dtype), wanted = listed(tensors, header.bias.tensor).form, header.bias.shape
        if not expands(shape, wanted):
            raise ValueError(f"{where}.bias of shape {shape} does not repeat to {wanted}")
        forms["bias"] = wanted, dtype
    layer = header.layer
    try:
        check_forms(
            forms, sizes=layer.sizes, heads=len(layer.heads), queries=layer.query_count, kv_heads=layer.kv_heads
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def schema_of(header: Header) -> int:
    """The oldest schema that knows everything in a header."""
    return max((_SINCE.get(name, 1) for layer in header.layers for name in layer.tensors), default=1)


def listed(tensors: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    """What the header says of a tensor that something in it names."""
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    return tensors[name]


def expands(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape repeats along axes of size 1 to the wanted one."""
    return len(shape) == len(wanted) and all(size in (1, other) for size, other in zip(shape, wanted, strict=True))
