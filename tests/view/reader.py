"""A reader of docs/page-format.md, written from that file alone: nothing of multihead.view is used here."""

import base64
import json
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np

_DTYPES = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "i32": np.dtype("<i4"),
    "u16": np.dtype("<u2"),
    "u8": np.dtype("u1"),
}


_COMPUTED = ("q", "k", "q_shift", "k_shift", "steps", "lse", "softcap", "bias", "mask")


class Elements(HTMLParser):
    """Every tag with its attributes and the text inside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), []))
        self._open.append(self.tags[-1][2])

    def handle_data(self, data):
        if self._open:
            self._open[-1].append(data)

    def handle_endtag(self, tag):
        if self._open:
            self._open.pop()

    def text(self, tag: str, **attributes: str) -> str:
        found = [
            "".join(text) for name, attrs, text in self.tags if name == tag and attributes.items() <= attrs.items()
        ]
        assert len(found) == 1, (tag, attributes, len(found))
        return found[0]


@dataclass
class Page:
    html: str

    def __post_init__(self) -> None:
        self.elements = Elements(self.html)
        self.document = json.loads(self.elements.text("script", id="multihead-document"), parse_constant=_no_constant)
        self.data = zlib.decompress(self.bytes("multihead-data"))
        self.used: list[tuple[int, int]] = []

    def bytes(self, name: str) -> bytes:
        """What an element holds as text."""
        text = self.elements.text("script", id=name)
        (coding,) = [attrs["data-coding"] for _, attrs, _ in self.elements.tags if attrs.get("id") == name]
        if coding == "base64":
            return base64.b64decode(text, validate=True)
        assert coding == "sevens"
        assert not set(text) & set("\0\r<")
        numbers = [ord(character) - (256 if ord(character) > 255 else 0) for character in text]
        assert all(0 <= number < 128 for number in numbers)
        bits = np.unpackbits(np.array(numbers, dtype=np.uint8)[:, None], axis=1)[:, 1:].reshape(-1)
        return np.packbits(bits[: len(bits) // 8 * 8]).tobytes()

    def array(self, reference: dict) -> np.ndarray:
        assert set(reference) == {"offset", "dtype", "shape"}
        assert reference["offset"] % 8 == 0
        dtype = _DTYPES[reference["dtype"]]
        count = int(np.prod(reference["shape"], dtype=np.int64))
        end = reference["offset"] + count * dtype.itemsize
        assert 0 <= reference["offset"] <= end <= len(self.data)
        self.used.append((reference["offset"], end))
        return np.frombuffer(self.data, dtype, count, reference["offset"]).reshape(reference["shape"])

    def sizes(self, layer: dict) -> tuple[int, int, int, int]:
        """H, Lq, Lq_full, Lk."""
        full = len(self.document["texts"][layer["query_text"]]["tokens"])
        keys = len(self.document["texts"][layer["key_text"]]["tokens"])
        queries = full if layer["queries"] is None else len(layer["queries"])
        return len(layer["heads"]), queries, full, keys

    def integers(self, planes: np.ndarray) -> np.ndarray:
        """[bytes, H, D, L] to signed [H, D, L]."""
        coded = sum(plane.astype(np.int64) << (8 * byte) for byte, plane in enumerate(planes))
        return np.where(coded % 2 == 0, coded // 2, -(coded + 1) // 2)

    def numbers(self, layer: dict, name: str) -> np.ndarray:
        """q or k, signed [H, D, L]."""
        planes, shift = self.array(layer[name]), self.array(layer[f"{name}_shift"])
        assert shift.shape == (planes.shape[1], planes.shape[3])
        return self.integers(planes) << shift[:, None].astype(np.int64)

    def weights(self, layer: dict) -> np.ndarray:
        """[H, Lq, Lk]."""
        heads, queries, _, keys = self.sizes(layer)
        if layer["weights"] is not None:
            assert [layer[name] for name in _COMPUTED] == [None] * len(_COMPUTED)
            weights = self.array(layer["weights"])
            assert weights.shape == (heads, queries, keys)
            return weights / 65535
        a, b, steps = self.numbers(layer, "q"), self.numbers(layer, "k"), self.array(layer["steps"])
        assert a.shape == (heads, a.shape[1], queries)
        assert b.shape == (heads, a.shape[1], keys)
        scores = np.einsum("hd,hdq,hdk->hqk", steps, a, b)
        if layer["softcap"] is not None:
            scores = layer["softcap"] * np.tanh(scores / layer["softcap"])
        if layer["bias"] is not None:
            bias = self.array(layer["bias"])
            assert bias.shape[0] in (1, heads)
            assert bias.shape[1:] == (queries, keys)
            scores = scores + bias
        lse = self.array(layer["lse"])
        assert lse.shape == (heads, queries)
        blind = lse == -np.inf
        weights = np.exp(scores - np.where(blind, 0, lse)[..., None])
        return np.where(self.visible(layer) & ~blind[..., None], weights, 0)

    def visible(self, layer: dict) -> np.ndarray:
        """[H, Lq, Lk]."""
        heads, _queries, full, keys = self.sizes(layer)
        seen = np.ones((heads, full, keys), bool)
        if layer["mask"] is not None:
            seen = seen & self._mask(layer["mask"], heads, full, keys, layer["query_offset"])
        return seen if layer["queries"] is None else seen[:, layer["queries"]]

    def _mask(self, node: dict, heads: int, full: int, keys: int, offset: int) -> np.ndarray:
        i, j = np.arange(full)[:, None], np.arange(keys)[None]
        p = i + offset
        inner = (heads, full, keys, offset)
        match node["kind"]:
            case "causal":
                return (j <= p)[None]
            case "sliding_window":
                left = np.ones((full, keys), bool) if node["left"] is None else p - node["left"] <= j
                right = True if node["right"] is None else j <= p + node["right"]
                return (left & right)[None]
            case "padding":
                valid = self.array(node["valid"])
                assert valid.shape == (keys,)
                return (valid != 0)[None, None]
            case "documents":
                query, key = self.array(node["query"]), self.array(node["key"])
                assert query.shape == (full,)
                assert key.shape == (keys,)
                return (query[:, None] == key[None])[None]
            case "prefix":
                return (j < node["length"])[None]
            case "dense":
                shape = node["shape"]
                assert all(size in (1, whole) for size, whole in zip(shape, (heads, full, keys), strict=True))
                bits = np.unpackbits(self.array(node["bits"]), bitorder="little")[: int(np.prod(shape))]
                return bits.reshape(shape).astype(bool)
            case "and":
                return self._mask(node["left"], *inner) & self._mask(node["right"], *inner)
            case "or":
                return self._mask(node["left"], *inner) | self._mask(node["right"], *inner)
            case "not":
                return ~self._mask(node["mask"], *inner)
        raise AssertionError(node["kind"])


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
