import base64
import importlib.resources
import itertools
import os
import re
import threading
import zlib

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.core import Statistics
from multihead.errors import RecordingError
from multihead.front.document import CELLS
from multihead.masks import Mask
from multihead.recording import Recording
from multihead.view import page as page_of
from multihead.view import write_page
from multihead.view.entries import NOISE, PLAIN, Data, sevens
from multihead.view.page import bundle, json_in_html
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.reader import Elements, Page

EVIL = [
    "</script><script>alert(1)</script>",
    "<!--",
    "-->",
    "]]>",
    "&lt;",
    "\"'`",
    "\\",
    "\u2028\u2029",
    "\x00\x1b[31m\x07",
    "\ud800",
    "مرحبا",
    "שלום",
    "\u202eabc",
    "👩\u200d👩\u200d👧",
    "<img src=x onerror=alert(1)>",
    "{title}",
    "",
]
TWO_TEXTS = {"query_text": "target", "key_text": "source"}


def test_a_page_gives_back_the_weights():
    call = made_call(heads=6, kv_heads=2, queries=11, keys=11, mask=masks.causal())
    other = made_call(heads=3, queries=11, keys=11, softcap=3.0, seed=1)
    layers = [layer_of(call, index=4), layer_of(other, index=5, heads=(0, 2))]
    recording = recording_of(*layers, provenance={"model": "made", "torch": "2"})
    read = Page(page_of(recording, start={"layer": 5, "token": 3}))
    document = read.document
    assert (document["format"], document["version"]) == ("multihead-page", 2)
    assert document["title"] == "Attention of made"
    assert document["provenance"] == {"model": "made", "torch": "2", "page": document["provenance"]["page"]}
    assert document["start"] == {"layer": 5, "token": 3}
    assert [(layer["index"], layer["heads"]) for layer in document["layers"]] == [(4, [0, 1, 2, 3, 4, 5]), (5, [0, 2])]
    assert document["layers"][1]["softcap"] == 3.0
    assert 0 < document["accuracy"] <= 1e-5
    found = [read.weights(layer) for layer in document["layers"]]
    assert np.abs(found[0] - true_weights(call)).max() <= 1e-5
    assert np.abs(found[1] - true_weights(other, heads=(0, 2))).max() <= 1e-5
    for layer, source in zip(document["layers"], layers, strict=True):
        assert layer["entropy"] is None, "a row's is computed with the row"
        assert layer["name"] == source.name


def test_arrays_lie_side_by_side_and_fill_the_data():
    call = made_call(mask=masks.dense(torch.rand(11, 13) > 0.3), bias=torch.randn(3, 11, 13))
    read = Page(page_of(recording_of(layer_of(call))))
    for reference in _references(read.document["layers"][0]):
        read.array(reference)
    spans = sorted(read.used)
    assert len(spans) == 10
    assert spans[0][0] == 0
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert 0 <= start - end < 8
    assert len(read.data) - spans[-1][1] < 8


def _references(value):
    if isinstance(value, dict):
        if "offset" in value:
            yield value
        else:
            for inner in value.values():
                yield from _references(inner)


class Odd(Mask):
    """A mask that this package does not know."""

    def visible(self, queries, keys, sizes):
        return ((queries[:, None] + keys[None]) % 3 != 0)[None, None]


RANDOM = torch.Generator().manual_seed(11)
VALID = torch.rand(2, 13, generator=RANDOM) > 0.4
NUMBERS = [torch.randint(0, 3, (2, length), generator=RANDOM) for length in (11, 13)]


def some(*shape):
    return masks.dense(torch.rand(*shape, generator=RANDOM) > 0.5)


MASKS = {
    "causal": masks.causal(),
    "window": masks.sliding_window(3),
    "left side only": masks.sliding_window(left=2),
    "right side only": masks.sliding_window(right=1),
    "padding": masks.padding(VALID),
    "documents": masks.documents(*NUMBERS),
    "documents with long numbers": masks.documents(
        torch.tensor([2**40] * 4 + [-5] * 7), torch.tensor([-5] * 3 + [2**40] * 10)
    ),
    "prefix": masks.prefix(4),
    "dense": some(11, 13),
    "dense by head": some(3, 11, 13),
    "dense by sequence and head": some(2, 3, 11, 13),
    "dense by key": masks.dense(VALID[:, None, None]),
    "dense by query": some(2, 1, 11, 1),
    "and": masks.causal() & masks.padding(VALID),
    "or": masks.causal() | masks.prefix(3),
    "not": ~masks.sliding_window(left=1, right=1),
    "a tree": (masks.causal() & ~masks.prefix(1)) | (masks.padding(VALID) & some(11, 13)),
    "unknown": Odd(),
    "not everything": ~masks.dense(torch.ones(11, 13, dtype=torch.bool)),
    "everything and": masks.padding(torch.ones(13, dtype=torch.bool)) & masks.causal(),
}


@pytest.mark.parametrize("queries", [None, (1, 2, 7)], ids=["all", "some"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_say_the_same_in_the_page(name, queries):
    call = made_call(batch=2, mask=MASKS[name])
    layer = layer_of(call, heads=(0, 2), queries=queries, **TWO_TEXTS)
    read = Page(page_of(recording_of(layer), item=1))
    entry = read.document["layers"][0]
    assert entry["query_offset"] == 2
    seen = MASKS[name].dense(11, 13, batch=2, heads=3).expand(2, 3, 11, 13)[1, [0, 2]].numpy()
    seen = seen if queries is None else seen[:, list(queries)]
    np.testing.assert_array_equal(np.broadcast_to(read.visible(entry), seen.shape), seen)
    true = true_weights(call, item=1, heads=(0, 2), queries=queries)
    assert np.abs(read.weights(entry) - true).max() <= 1e-5


def test_a_mask_that_hides_nothing_is_left_out():
    everything = torch.ones(11, 13, dtype=torch.bool)
    for mask in (None, masks.dense(everything), masks.padding(everything[0])):
        read = Page(page_of(recording_of(layer_of(made_call(mask=mask), **TWO_TEXTS))))
        assert read.document["layers"][0]["mask"] is None


def test_dense_masks_keep_only_the_axes_that_matter():
    by_key = masks.dense(VALID[0].expand(3, 11, 13))
    read = Page(page_of(recording_of(layer_of(made_call(mask=by_key), **TWO_TEXTS))))
    assert read.document["layers"][0]["mask"]["shape"] == [1, 1, 13]


SCORES = {
    "bias": {"bias": torch.randn(2, 3, 11, 13, generator=RANDOM)},
    "bias of keys": {"bias": torch.randn(1, 1, 1, 13, generator=RANDOM)},
    "sinks": {"sinks": torch.tensor([0.3, 2.0, -1.0])},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": 1.0},
}


@pytest.mark.parametrize("queries", [None, (0, 6, 9)], ids=["all", "some"])
@pytest.mark.parametrize("name", SCORES)
def test_everything_that_changes_scores(name, queries):
    call = made_call(batch=2, **SCORES[name])
    layer = layer_of(call, heads=(1, 2), queries=queries, statistics=Statistics(sink=name == "sinks"), **TWO_TEXTS)
    read = Page(page_of(recording_of(layer), item=1))
    entry = read.document["layers"][0]
    found = read.weights(entry)
    assert np.abs(found - true_weights(call, item=1, heads=(1, 2), queries=queries)).max() <= 1e-5
    assert (entry["sink"] is not None) == (name == "sinks")
    if name == "sinks":
        np.testing.assert_allclose(read.array(entry["sink"]), 1 - found.sum(-1), atol=1e-4)
        bare = layer_of(call, heads=(1, 2), queries=queries, **TWO_TEXTS)
        again = Page(page_of(recording_of(bare), item=1))
        np.testing.assert_allclose(
            again.array(again.document["layers"][0]["sink"]), read.array(entry["sink"]), rtol=1e-5
        )


def test_a_sink_of_no_weight_in_a_row_that_sees_nothing():
    blind = masks.causal() & ~masks.prefix(5)
    call = made_call(mask=blind, sinks=torch.tensor([-torch.inf, 0.0, 1.0]))
    read = Page(page_of(recording_of(layer_of(call, **TWO_TEXTS))))
    sink = read.array(read.document["layers"][0]["sink"])
    assert sink[:, 0].tolist() == [0.0, 1.0, 1.0]
    assert np.isfinite(sink).all()


def test_cross_attention_has_two_texts():
    own = layer_of(made_call(queries=7, keys=7), query_text="target", key_text="target", index=0)
    call = made_call(queries=7, keys=11, seed=1)
    read = Page(page_of(recording_of(own, layer_of(call, index=1, **TWO_TEXTS))))
    assert [text["name"] for text in read.document["texts"]] == ["target", "source"]
    assert [len(text["tokens"]) for text in read.document["texts"]] == [7, 11]
    assert [(layer["query_text"], layer["key_text"]) for layer in read.document["layers"]] == [(0, 0), (0, 1)]
    assert np.abs(read.weights(read.document["layers"][1]) - true_weights(call)).max() <= 1e-5


@pytest.mark.parametrize("queries", [None, (0, 2)], ids=["all", "some"])
def test_queries_over_a_cache_stand_at_the_end_of_the_text(queries):
    ids = torch.tensor([0] * 4 + [1] * 7)
    mask = (masks.causal() & masks.documents(ids[-3:], ids)) | masks.dense(torch.eye(3, 11, dtype=torch.bool))
    call = made_call(queries=3, keys=11, mask=mask)
    read = Page(page_of(recording_of(layer_of(call, queries=queries))))
    entry = read.document["layers"][0]
    assert entry["queries"] == ([8, 9, 10] if queries is None else [8, 10])
    assert entry["query_offset"] == 0
    assert np.abs(read.weights(entry) - true_weights(call, queries=queries)).max() <= 1e-5


def test_positions_stand_in_for_tokens_that_are_not_there():
    read = Page(page_of(Recording((layer_of(made_call(queries=3, keys=3)),), {})))
    assert read.document["texts"] == [{"name": "text", "tokens": ["0", "1", "2"], "prompt": None}]


def test_texts_that_do_not_fit_are_refused():
    cache = layer_of(made_call(queries=1, keys=7), index=2)
    longer = layer_of(made_call(queries=11, keys=11))
    with pytest.raises(ValueError, match="layer 2 has 7 keys, but the text 'text' has 11 tokens"):
        page_of(recording_of(longer, cache))
    target = layer_of(made_call(queries=3, keys=11), index=1, **TWO_TEXTS)
    own = layer_of(made_call(queries=5, keys=5), query_text="target", key_text="target")
    with pytest.raises(ValueError, match="layer 1 has 3 queries, but the text 'target' has 5 tokens"):
        page_of(recording_of(own, target))


def overview_of(read):
    entry = read.document["layers"][0]
    cells, peak = read.array(entry["overview"]), read.array(entry["overview_peak"])
    return (cells / 255.0) ** 2 * peak[:, None, None]


def block_means(weights, height, width):
    rows, columns = (range(0, size, step) for size, step in zip(weights.shape[1:], (height, width), strict=True))
    return np.array([[[head[i : i + height, j : j + width].mean() for j in columns] for i in rows] for head in weights])


def assert_quantised(found, means):
    assert found.shape == means.shape
    assert np.abs(np.sqrt(found) - np.sqrt(means)).max() <= 0.5001 / 255 * np.sqrt(means.max())


@pytest.mark.parametrize("recorded", [None, (2, 3)], ids=["measured", "recorded"])
def test_the_overview_is_the_mean_weight(recorded):
    call = made_call(heads=2, queries=61, keys=61, mask=masks.causal(), spread=2.0)
    read = Page(page_of(recording_of(layer_of(call, statistics=Statistics(blocks=recorded)))))
    assert_quantised(overview_of(read), block_means(true_weights(call), *(recorded or (2, 2))))


def test_an_overview_that_was_recorded_finely_is_shrunk():
    call = made_call(heads=2, queries=61, keys=61, mask=masks.causal(), spread=2.0)
    read = Page(page_of(recording_of(layer_of(call, statistics=Statistics(blocks=(1, 1))))))
    found = overview_of(read)
    assert found.shape == (2, CELLS, CELLS)
    assert found.mean() == pytest.approx(true_weights(call).mean(), rel=0.1)


def test_the_overview_of_chosen_heads_and_queries_is_measured():
    bias = torch.randn(2, 3, 11, 13, generator=RANDOM)
    call = made_call(batch=2, mask=some(2, 3, 11, 13), bias=bias)
    layer = layer_of(call, heads=(0, 2), queries=(2, 3, 7), **TWO_TEXTS)
    read = Page(page_of(recording_of(layer), item=1))
    assert_quantised(overview_of(read), true_weights(call, item=1, heads=(0, 2), queries=(2, 3, 7)))


@pytest.mark.parametrize("evil", EVIL)
def test_tokens_are_data(evil):
    layer = layer_of(made_call(queries=2, keys=2))
    provenance = {"model": evil, evil: "value"}
    html = page_of(recording_of(layer, texts={"text": [[evil, "b"]]}, provenance=provenance), title=evil)
    read = Page(html)
    assert read.document["texts"][0]["tokens"] == [evil, "b"]
    assert read.document["title"] == evil
    assert read.document["provenance"][evil] == "value"
    names = [tag for tag, _, _ in read.elements.tags]
    assert names.count("script") == 4
    assert "img" not in names
    if "\x00" not in evil and "\ud800" not in evil:
        assert read.elements.text("title") == evil
    assert not set("<>&\u2028\u2029") & set(read.elements.text("script", id="multihead-document"))
    html.encode("utf-8", errors="strict")


@pytest.mark.parametrize("quotable", [False, True])
def test_a_page_carries_its_numbers_and_its_viewer_as_text(quotable):
    call = made_call(heads=2, queries=11, keys=11)
    html = page_of(recording_of(layer_of(call)), quotable=quotable)
    read = Page(html)
    assert np.abs(read.weights(read.document["layers"][0]) - true_weights(call)).max() <= 1e-5
    assert zlib.decompress(read.bytes("multihead-viewer")).decode() == bundle()[0]
    assert html.isascii() == quotable
    assert html.count("<script>") == 1, "what unpacks the rest"


def test_seven_bits_a_character():
    draw = np.random.default_rng(0)
    for length in (*range(9), 997):
        data = draw.bytes(length)
        text = sevens(data)
        assert not set(text) & set("\0\r<")
        assert len(text) == -(-8 * length // 7)
        bits = "".join(f"{ord(character) % 256:07b}" for character in text)
        assert bytes(int(bits[place : place + 8], 2) for place in range(0, 8 * length, 8)) == data
    noise = draw.bytes(100_000)
    assert len(sevens(noise).encode()) < 1.18 * len(noise) < len(base64.b64encode(noise))


def test_arrays_compressed_in_different_ways_are_one_stream():
    data, whole = Data(), b""
    for place, like in enumerate([PLAIN, NOISE, NOISE, PLAIN]):
        array = np.random.default_rng(place).integers(0, 9, (3, 71), dtype=np.uint8)
        assert data.add(array, "u8", like=like)["offset"] == len(whole)
        whole += array.tobytes() + bytes(-array.size % 8)
    assert zlib.decompress(data.compressed()) == whole
    assert zlib.decompress(Data().compressed()) == b""


def test_nothing_is_fetched_from_anywhere():
    html = page_of(recording_of(layer_of(made_call())))
    elements = Elements(html)
    for tag, attributes, _ in elements.tags:
        assert tag in {"html", "head", "meta", "title", "style", "body", "div", "noscript", "script"}, tag
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), (tag, attributes)
    script, style = bundle()
    assert not re.search(r"url\((?!\s*[\"']?data:)|@import", style)
    # OpenSeadragon knows kinds of images by such names; the policy below lets none of them be fetched
    named = {"iiif.io", "library.stanford.edu", "openseadragon.github.io", "schemas.microsoft.com"}
    allowed = {"www.w3.org", "tile.openstreetmap.org", *named}
    assert set(re.findall(r"https?://([^\s\"'`)/]+)", script + style)) <= allowed
    policies = [attrs["content"] for _, attrs, _ in elements.tags if attrs.get("http-equiv")]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; img-src data:; "
        "worker-src blob:"
    ]
    assert html.startswith("<!doctype html>")
    assert "JavaScript" in elements.text("noscript")
    assert elements.text("style") == style
    assert [attrs for tag, attrs, _ in elements.tags if tag == "meta" and "charset" in attrs] == [{"charset": "utf-8"}]


def test_json_never_holds_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_in_html({"a": float("nan")})
    blind = made_call(mask=masks.causal() & ~masks.prefix(13))
    read = Page(page_of(recording_of(layer_of(blind))))
    entry = read.document["layers"][0]
    assert (read.array(entry["lse"]) == -np.inf).all()
    assert not read.weights(entry).any()


def test_the_same_recording_gives_the_same_page():
    recording = recording_of(layer_of(made_call()))
    assert page_of(recording) == page_of(recording)


def test_what_a_recording_lacks_is_named():
    with pytest.raises(ValueError, match="the recording holds no layer"):
        page_of(Recording((), {}))
    without_lse = layer_of(made_call(), statistics=Statistics(lse=False), index=7)
    with pytest.raises(RecordingError, match=r"layer 7 holds no log-sum-exp.*Statistics\(lse=True\)"):
        page_of(recording_of(without_lse))
    bare = layer_of(made_call(), index=3)
    for name in ("q", "k"):
        object.__setattr__(bare, name, None)
    with pytest.raises(RecordingError, match=r"layer 3 holds no queries and keys.*qk=True"):
        page_of(recording_of(bare))
    with pytest.raises(ValueError, match="item=2 out of range: the recording holds 2 sequences, 0 to 1"):
        page_of(recording_of(layer_of(made_call(batch=2))), item=2)


def test_a_page_that_would_be_too_large_is_refused_at_once():
    wide = torch.zeros(1, 1, 1, 1).expand(1, 3, 100_000, 64)
    layers = []
    for index in range(4):
        layer = layer_of(made_call(queries=3, keys=3), index=index)
        for name, value in {"q": wide, "k": wide, "sizes": masks.Sizes(1, 3, 100_000, 100_000)}.items():
            object.__setattr__(layer, name, value)
        layers.append(layer)
    advice = "for example 1 of the 12 heads, or the first 15000 of the 100000 tokens"
    with pytest.raises(ValueError, match=rf"about 40\d MB, more than 64 MB: choose fewer, {advice}"):
        page_of(Recording(tuple(layers), {}))


def test_a_missing_bundle_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the viewer's multihead.js is missing from this installation"):
        page_of(recording_of(layer_of(made_call())))


def test_a_bundle_that_would_end_its_element_is_refused(monkeypatch, tmp_path):
    static = tmp_path / "view" / "static"
    static.mkdir(parents=True)
    (static / "multihead.js").write_text('"</SCRIPT>"')
    (static / "multihead.css").write_text("")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(RuntimeError, match=r"multihead.js holds </script, which would end its element"):
        bundle()


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("before")
    good = recording_of(layer_of(made_call()))
    with pytest.raises(RecordingError, match="holds no log-sum-exp"):
        write_page(recording_of(layer_of(made_call(), statistics=Statistics(lse=False))), target)
    assert target.read_text() == "before"
    assert write_page(good, str(target)) == target
    assert target.read_text() == page_of(good)
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask

    def full(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("pathlib.Path.replace", full)
    target.write_text("before")
    with pytest.raises(OSError, match="No space left"):
        write_page(good, target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_two_writers_do_not_meet(tmp_path):
    good = recording_of(layer_of(made_call()))
    threads = [threading.Thread(target=write_page, args=(good, tmp_path / "page.html")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert Page((tmp_path / "page.html").read_text()).document["layers"]


def test_places_that_cannot_be_written(tmp_path):
    good = recording_of(layer_of(made_call()))
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        write_page(good, tmp_path)
    with pytest.raises(FileNotFoundError):
        write_page(good, tmp_path / "absent" / "page.html")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe is a named pipe, which a new file would replace"):
        write_page(good, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.html").symlink_to("page.html")
    for _ in range(2):
        assert write_page(recording_of(layer_of(made_call())), tmp_path / "link.html") == tmp_path / "link.html"
        assert (tmp_path / "link.html").is_symlink()
        assert Page((tmp_path / "page.html").read_text()).document["layers"]


def test_a_page_opens_at_a_word_that_tells_something():
    tokens = ["[CLS]", "a", "considerable", "word", ".", "[SEP]", "b", "c"]
    recording = recording_of(layer_of(made_call(queries=8, keys=8, spread=2.0), index=3), texts={"text": [tokens]})
    found = Page(page_of(recording)).document["start"]
    assert (found["text"], found["token"], found["layer"], len(found["heads"])) == (0, 2, 3, 1)
    assert Page(page_of(recording, start={})).document["start"] == {}
    without = Recording((layer_of(made_call(queries=0, keys=3), **TWO_TEXTS),), {"source": [["a", "b", "c"]]})
    assert Page(page_of(without)).document["start"]["token"] == 0
