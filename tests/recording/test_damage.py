"""A file that is no recording, or a damaged, forged or newer one, is refused with one sentence and nothing worse."""

import json
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from multihead import masks
from multihead.core import Statistics
from multihead.errors import RecordingError, SourceError
from multihead.recording import load
from tests.accuracy import random_call
from tests.recording.examples import TOKENS, Parts, difference, forged, recording_of, selected

LENGTH = len(TOKENS)


def example():
    """A recording with a bit of everything."""
    padding, dense = torch.rand(2, LENGTH) > 0.3, torch.rand(2, 6, LENGTH, LENGTH) > 0.5
    mask = masks.causal() & masks.padding(padding) | ~masks.dense(dense) & masks.documents(torch.arange(LENGTH) // 3)
    call = random_call(queries=LENGTH, mask=mask | masks.sliding_window(2) | masks.prefix(1), bias=True, sinks=True)
    return recording_of(selected(call, index=0, statistics=Statistics(top=2)), selected(call, index=2, heads=[4, 1]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whole") / "run.safetensors"
    example().save(path)
    return path


def read_all(path: Path):
    """Open a file and read every tensor of it."""
    loaded = load(path)
    for layer in loaded:
        layer.tensors()
        # read when it is asked for; a header may also say that there is none
        assert layer.mask is None or isinstance(layer.mask, masks.Mask)
    return loaded


def refused(path: Path, words: str) -> None:
    with pytest.raises(RecordingError, match=words) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600


class TestWhatIsNoRecording:
    def test_missing(self, tmp_path):
        refused(tmp_path / "none.safetensors", "cannot read .*none.safetensors: ")

    def test_a_folder(self, tmp_path):
        refused(tmp_path, "cannot read .*: it is a folder; recordings are files")

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "run.safetensors")
        refused(tmp_path / "run.safetensors", "cannot read .*: it is a named pipe")

    @pytest.mark.parametrize(
        "content",
        [b"", b"PK\x03\x04", b"hello, world, this is no such file", bytes(100), b"\xff" * 64, b"\x80\x04\x95"],
    )
    def test_another_kind_of_file(self, tmp_path, content):
        (tmp_path / "x").write_bytes(content)
        refused(tmp_path / "x", "is no recording, or a damaged one: it is no whole safetensors file")

    def test_a_models_weights(self, tmp_path):
        save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
        refused(tmp_path / "model.safetensors", "a safetensors file of something else, perhaps a model's weights")
        save_file({"weight": torch.zeros(3)}, tmp_path / "bare.safetensors")
        refused(tmp_path / "bare.safetensors", "a safetensors file of something else")

    def test_a_newer_one(self, whole):
        path = forged(whole, lambda parts: parts.outer["__metadata__"].update(schema="3"))
        refused(path, r"was written by a newer multihead \(schema 3; this one reads 2\): upgrade")

    @pytest.mark.parametrize("schema", ["0", "-1", "", "one", "9" * 5000, "²"])
    def test_a_schema_that_never_was(self, whole, schema):
        path = forged(whole, lambda parts: parts.outer["__metadata__"].update(schema=schema))
        refused(path, "is a damaged recording: schema .* is none there has been")


class TestDamage:
    def test_truncated(self, whole, tmp_path):
        content = whole.read_bytes()
        for length in (4, 8, 100, len(content) // 2, len(content) - 1):
            (tmp_path / "x").write_bytes(content[:length])
            refused(tmp_path / "x", "is no recording, or a damaged one")

    def test_longer(self, whole, tmp_path):
        (tmp_path / "x").write_bytes(whole.read_bytes() + b"\0")
        refused(tmp_path / "x", "is no recording, or a damaged one")

    @pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
    def test_a_header_length_that_lies(self, whole, tmp_path, length):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + whole.read_bytes()[8:])
        refused(tmp_path / "x", "is no recording, or a damaged one")

    def test_a_changed_number(self, whole, tmp_path):
        content = bytearray(whole.read_bytes())
        content[-100] ^= 1
        (tmp_path / "x").write_bytes(content)
        refused(tmp_path / "x", "is a damaged recording: tensor .* is not what was written: its checksum does not fit")

    def test_a_changed_token(self, whole, tmp_path):
        content = whole.read_bytes()
        assert content.count(b"less") == 2
        (tmp_path / "x").write_bytes(content.replace(b"less", b"more"))
        refused(tmp_path / "x", "the header's checksum does not fit it")


DEEP = "[" * 100_000 + "]" * 100_000


class TestHeadersThatAreNone:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "Expecting value"),
            ("{", "Expecting property name"),
            ("null", "the header is no object"),
            ("[]", "the header is no object"),
            ("{}", "the header has no 'tensors'"),
            (DEEP, "nested too deep"),
            ('{"tensors": NaN}', "the header holds NaN, which is no JSON"),
            ('{"tensors": ' + "9" * 5000 + "}", "Exceeds the limit"),
            ('{"tensors": [], "layers": []}', "tensors is no object"),
        ],
        ids=lambda value: value[:20],
    )
    def test_text(self, whole, tmp_path, text, words):
        Parts(whole).write(tmp_path / "x", text=text)
        refused(tmp_path / "x", f"is a damaged recording: .*{words}")


def put(*keys, value):
    """A change that puts a value somewhere in the recording's header."""

    def change(parts: Parts) -> None:
        place = parts.inner
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def drop(*keys):
    def change(parts: Parts) -> None:
        place = parts.inner
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


HUGE = 1 << 62


class TestForgedHeaders:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (drop("texts"), "the header has no 'texts'"),
            (drop("layers", 1, "scale"), r"layers\[1\] has no 'scale'"),
            (put("texts", value=[]), "texts is no object"),
            (put("texts", "text", value="word"), r"texts\['text'\] is no list"),
            (put("texts", "text", 0, value=[1]), r"texts\['text'\]\[0\] is no list of texts"),
            (put("texts", "text", value=[TOKENS]), "text 'text' has 1 sequence"),
            (put("texts", "text", 1, value=TOKENS[1:]), "text 'text' has 10 tokens"),
            (put("provenance", "model", value=3), r"provenance\['model'\] is no text"),
            (put("layers", value={}), "layers is no list"),
            (put("layers", 0, value=None), r"layers\[0\] is no object"),
            (put("layers", 0, "index", value=-1), r"layers\[0\].index is out of range"),
            (put("layers", 0, "index", value=True), r"layers\[0\].index is no whole number"),
            (put("layers", 0, "index", value=0.0), r"layers\[0\].index is no whole number"),
            (put("layers", 0, "index", value=9), "tensor layers.9.q is missing"),
            (lambda parts: parts.inner["layers"].append(parts.inner["layers"][1]), r"\[0, 2, 2\] name one twice"),
            (put("layers", 0, "name", value=None), r"layers\[0\].name is no text"),
            (put("layers", 0, "sizes", value=[1, 2]), "sizes are no four possible sizes"),
            (put("layers", 0, "sizes", value=[2, 6, -1, 11]), r"sizes\[2\] is out of range"),
            (put("layers", 0, "sizes", value=[2, 6, HUGE, 11]), r"sizes\[2\] is out of range"),
            (put("layers", 0, "sizes", value=[2, 6, 1 << 33, 11]), "sizes are no four possible sizes"),
            (
                put("layers", 0, "sizes", value=[2, 6, 1 << 31, 11]),
                "head 6, query 2147483648",
            ),
            (put("layers", 0, "sizes", value=[2, 6, 11, 13]), "expected the axes"),
            (put("layers", 0, "heads", value=[0, 1, 2, 3, 4, 6]), "heads 6 out of range"),
            (put("layers", 0, "heads", value=[0, 1]), "expected the axes batch 2, head 2"),
            (put("layers", 0, "heads", value="012345"), r"layers\[0\].heads is no list"),
            (put("layers", 0, "queries", value=[0, 1]), "query 2"),
            (put("layers", 0, "kv_heads", value=[0, 0, 1, 1, 2, 3]), "key heads 3 are not among the 3"),
            (put("layers", 0, "scale", value="1"), r"layers\[0\].scale is no finite number"),
            (put("layers", 0, "scale", value=10**400), r"layers\[0\].scale is out of range"),
            (put("layers", 0, "softcap", value=1e999), "the header holds|Infinity|out of range"),
            (put("layers", 0, "softcap", value=-1.0), "softcap=-1.0 is no positive number"),
            (put("layers", 0, "tensors", value=["q"]), "q and k are kept together"),
            (put("layers", 0, "tensors", value=["v"]), "tensors names 'v', which no layer has"),
            (put("layers", 0, "tensors", value=["../../../etc/passwd"]), "which no layer has"),
            (put("layers", 0, "nonfinite", value=None), r"layers\[0\].nonfinite is no list of texts"),
            (put("layers", 0, "bias", value={"tensor": 99, "shape": [1, 1, 1, 1]}), "tensor shared.99 is missing"),
            (put("layers", 0, "bias", "shape", value=[HUGE] * 4), "is out of range"),
            (put("layers", 0, "bias", "shape", value=[1 << 40] * 4), "is no possible shape"),
            (put("layers", 0, "bias", "shape", value=[2, 6, 11, 13]), "does not repeat to"),
            (put("layers", 0, "bias", "shape", value=[1, 6, 11]), "does not repeat to"),
            (put("layers", 0, "mask", value=999), "mask 999 is missing"),
            (put("layers", 0, "mask", value="causal"), r"layers\[0\].mask is no whole number"),
            (put("tensors", "layers.0.q", "shape", value=[2, 6, 11, 6]), "but the header says"),
            (put("tensors", "layers.0.q", "shape", value=[HUGE]), "is out of range"),
            (put("tensors", "layers.0.q", "shape", value=[1] * 9), "is no possible shape"),
            (put("tensors", "layers.0.q", "dtype", value="I32"), "but the header says"),
            (put("tensors", "layers.0.q", "dtype", value="F8_E4M3"), "dtype is none of F64"),
            (put("tensors", "layers.0.q", value=3), r"tensors\['layers.0.q'\] is no object"),
            (drop("tensors", "layers.0.q"), "tensor layers.0.q is missing"),
            (drop("tensors", "shared.0"), "tensor shared.0 is missing"),
            (put("tensors", "x" * 5000, value={"dtype": "F32", "shape": [1], "crc32": 0}), "is missing"),
        ],
    )
    def test_is_refused(self, whole, change, words):
        refused(forged(whole, change), words)

    def test_nothing_is_allocated_by_what_it_says(self, whole):
        def change(parts: Parts) -> None:
            layer = parts.inner["layers"][0]
            layer["sizes"], layer["tensors"], layer["bias"] = [1 << 31] * 4, [], None
            layer["heads"], layer["kv_heads"] = [], []
            layer["mask"] = 0
            parts.inner["masks"] = [{"kind": "causal"}]
            del parts.inner["layers"][1:]
            parts.inner["texts"] = {}

        path = forged(whole, change)
        tracemalloc.start()
        repr(load(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    def test_the_file_lacks_a_tensor(self, whole):
        def rename(parts: Parts) -> None:
            parts.outer["layers.0.other"] = parts.outer.pop("layers.0.k")

        refused(forged(whole, rename), "tensor 'layers.0.k' is missing")

    @pytest.mark.parametrize(
        ("name", "dtype"), [("q", "I32"), ("statistics.visible", "F64"), ("statistics.lse", "I32")]
    )
    def test_both_headers_tell_the_same_lie(self, whole, name, dtype):
        def change(parts: Parts) -> None:
            for place in (parts.outer, parts.inner["tensors"]):
                place[f"layers.0.{name}"]["dtype"] = dtype

        refused(forged(whole, change), f"{name} has dtype torch.{'float' if dtype == 'F64' else 'int'}")


def dense(shape: list[int]) -> dict:
    return {"kind": "dense", "allowed": "D", "stored": shape, "shape": shape}


NO_BITS = "does not hold the bits of a mask"
NODES = {
    "unknown": ([{"kind": "pickle"}], "is a mask of unknown kind 'pickle'"),
    "no kind": ([{}], r"masks\[0\] has no 'kind'"),
    "no node": ([3], r"masks\[0\] is no object"),
    "itself": ([{"kind": "not", "mask": 0}], "names mask 0, which does not come before it"),
    "later": (
        [{"kind": "and", "left": 1, "right": 1}, {"kind": "causal"}],
        "names mask 1, which does not",
    ),
    "negative": ([{"kind": "not", "mask": -1}], "is out of range"),
    "deep": ([{"kind": "causal"}, *({"kind": "not", "mask": place} for place in range(101))], "nested deeper than 100"),
    "very deep": ([{"kind": "causal"}, *({"kind": "not", "mask": n} for n in range(50_000))], "nested deeper than 100"),
    "wide": (
        [{"kind": "causal"}, *({"kind": "and", "left": place, "right": place} for place in range(60))],
        "more than 10000 parts",
    ),
    "negative prefix": ([{"kind": "prefix", "length": -1}], "length is out of range"),
    "huge window": ([{"kind": "sliding_window", "left": 1 << 63, "right": None}], "left is out of range"),
    "text window": ([{"kind": "sliding_window", "left": "1", "right": None}], "left is no whole number"),
    "missing tensor": ([{"kind": "padding", "valid": 99}], "tensor shared.99 is missing"),
    "padding of numbers": ([{"kind": "padding", "valid": "F"}], "where a mask needs booleans with two axes"),
    "documents of flags": ([{"kind": "documents", "queries": "B", "keys": "B"}], "where a mask needs signed integers"),
    "dense of flags": (
        [{"kind": "dense", "allowed": "B", "stored": [11], "shape": [1, 1, 1, 11]}],
        NO_BITS,
    ),
    "too few bits": ([dense([2, 6, 11, 99])], NO_BITS),
    "three axes": ([dense([12, 11, 11])], NO_BITS),
    "other size": ([dense([6, 2, 11, 11])], "does not broadcast"),
    "absurd": ([{"kind": "dense", "allowed": "D", "stored": [1 << 40] * 4, "shape": [1] * 4}], "is no possible shape"),
}


@pytest.mark.parametrize("name", NODES)
def test_masks_that_are_none(whole, name):
    nodes, words = NODES[name]

    def change(parts: Parts) -> None:
        old = {node["kind"]: node for node in parts.inner["masks"]}
        tensors = {
            "B": old["padding"]["valid"],
            "D": old["dense"]["allowed"],
            "F": parts.inner["layers"][0]["bias"]["tensor"],
        }
        parts.inner["masks"] = [
            {key: tensors.get(value, value) if isinstance(value, str) else value for key, value in node.items()}
            if isinstance(node, dict)
            else node
            for node in nodes
        ]
        for layer in parts.inner["layers"]:
            layer["mask"] = 0

    refused(forged(whole, change), words)


class TestNumbersThatCannotBe:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["layers.0.statistics.lse", "layers.2.q", "layers.0.k"])
    def test_nan_and_inf(self, whole, name, value):
        path = forged(whole, lambda parts: struct.pack_into("<f", parts.tensor(name), 40, value))
        loaded = load(path)
        refused(path, f"{name.removeprefix('layers.0.') if 'lse' in name else name} holds NaN or inf")
        # the other layer's are as they were
        assert loaded.layers[1 if "0" in name else 0].q is not None

    def test_a_row_that_sees_nothing(self, whole):
        path = forged(
            whole, lambda parts: struct.pack_into("<f", parts.tensor("layers.0.statistics.lse"), 0, float("-inf"))
        )
        assert not read_all(path).rows(0, [0], heads=[0]).any()


def test_a_tensor_where_numbers_do_not_lie_even(whole):
    """Nothing says that a foreign writer puts float32 at multiples of four."""

    def change(parts: Parts) -> None:
        names = sorted(
            (name for name in parts.outer if name != "__metadata__"), key=lambda n: parts.outer[n]["data_offsets"]
        )
        content, start = bytearray(b"\1"), 1
        for name in names:
            data = bytes(parts.tensor(name))
            parts.outer[name]["data_offsets"] = [start, start + len(data)]
            content += data
            start += len(data)
        parts.outer["a"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
        parts.data = content

    assert difference(read_all(forged(whole, change)), read_all(whole)) is None


def test_the_forger_forges(whole):
    """Taken apart and put together without a change, a file is the same: refusals come from the changes."""
    assert difference(load(forged(whole, lambda parts: None)), load(whole)) is None


@pytest.fixture(scope="module")
def original(whole):
    return load(whole)


def same_or_refused(path: Path, original) -> None:
    try:
        found = read_all(path)
    except RecordingError:
        return
    assert difference(found, original) is None


FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@settings(FUZZ, max_examples=250)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=0, max_size=4),
    header=st.booleans(),
    cut=st.none() | st.floats(0, 1),
)
def test_flipped_and_cut_bytes(whole, original, tmp_path, flips, header, cut):
    content = bytearray(whole.read_bytes())
    length = int.from_bytes(content[:8], "little") + 8 if header else len(content)
    for place, change in flips:
        content[int(place * length)] ^= change
    path = tmp_path / "fuzzed.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    same_or_refused(path, original)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["causal", "q", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_of(value, path=()):
    """Every place in a JSON value."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from paths_of(member, (*path, key))


@settings(FUZZ, max_examples=250)
@given(data=st.data(), value=JSON)
def test_headers_with_anything_anywhere(whole, tmp_path, data, value):
    """Whatever stands in the header, with checksums that fit: a refusal, or a recording that can be asked."""
    parts = Parts(whole)
    keys = data.draw(st.sampled_from(sorted(paths_of(parts.inner), key=str)))
    text = None
    if keys:
        put(*keys, value=value)(parts)
    else:
        text = json.dumps(value)
    path = tmp_path / "fuzzed.safetensors"
    path.unlink(missing_ok=True)
    parts.write(path, text=text)
    try:
        found = read_all(path)
        repr(found)
        for layer in found:
            found.rows(layer.index, [0])
        found.sequence(1).top(0)
    except (RecordingError, SourceError):
        return
