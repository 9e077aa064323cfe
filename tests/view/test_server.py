import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from multihead import cli, masks
from multihead.cli.serving import is_surely_too_large
from multihead.core import Measurements, Statistics, reference
from multihead.errors import RecordingError, SourceError
from multihead.front import opening as front_opening
from multihead.kernels import measure
from multihead.recording import load, maps
from multihead.recording.maps import LayerMap
from multihead.view import served
from multihead.view.served import Served
from multihead.view.server import opened, serve, serving
from multihead.web import Site
from tests.accuracy import check
from tests.view.made import layer_of, made_call, recording_of

EVIL = ["</script><script>alert(1)</script>", "\x1b[31m", "<!--", "&amp;", "שלום", "\u202eabc", "\ud800", '"', "\\"]
TOKENS = 293
ASKED = [0, 7, 41, 292]

SELF = made_call(heads=4, kv_heads=2, queries=TOKENS, keys=TOKENS, dim=8, mask=masks.causal(), spread=1.5)
SOME = made_call(heads=5, queries=TOKENS, keys=TOKENS, dim=8, seed=1)


def made_recording():
    layers = layer_of(SELF), layer_of(SOME, index=3, heads=[1, 4], queries=ASKED)
    tokens = [*EVIL, *(f"token{place}" for place in range(TOKENS - len(EVIL)))]
    return recording_of(*layers, texts={"text": [tokens]}, provenance={"model": "<b>made</b>"})


def get(url, path="", method="GET", headers=None, host=None):
    """Status, headers and body of one request."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
    try:
        connection.putrequest(method, path if path.startswith("/") else where.path + path, skip_host=True)
        connection.putheader("Host", where.netloc if host is None else host)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def floats(url, path):
    status, headers, body = get(url, path)
    assert status == 200, body
    assert headers["content-type"] == "application/octet-stream"
    return torch.frombuffer(bytearray(body), dtype=torch.float32)


def error(url, path, **options):
    status, headers, body = get(url, path, **options)
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)["error"]


def document_in(body):
    begin = b'<script type="application/json" id="multihead-document">'
    assert body.count(begin) == 1
    return json.loads(body.split(begin)[1].split(b"</script>")[0])


@pytest.fixture(scope="module")
def url():
    with serving(made_recording()) as found:
        yield found


def truths(call, **chosen):
    """In float64 and in float32, as (heads, queries, keys)."""
    heads = chosen.get("heads", range(call.sizes.heads))
    queries = chosen.get("queries", range(call.sizes.queries))
    for dtype in (torch.float64, torch.float32):
        yield reference(call, dtype).weights[0][list(heads)][:, list(queries)]


def test_the_page(url):
    status, headers, body = get(url)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.count(b"<script") == 2, "no token adds one"
    assert b"<title>Attention of &lt;b&gt;made&lt;/b&gt;</title>" in body
    document = document_in(body)
    assert document["source"] == {"kind": "server"}
    assert document["texts"][0]["tokens"][: len(EVIL)] == EVIL
    first, second = document["layers"]
    for layer in (first, second):
        for name in ("q", "k", "steps", "lse", "bias", "mask", "sink", "entropy"):
            assert layer[name] is None
    assert (first["rows"], first["keys"], first["queries"], first["heads"]) == (TOKENS, TOKENS, None, [0, 1, 2, 3])
    assert (second["rows"], second["keys"], second["queries"], second["heads"]) == (4, TOKENS, ASKED, [1, 4])
    for layer, weights in ((first, next(truths(SELF))), (second, next(truths(SOME, heads=[1, 4], queries=ASKED)))):
        cells, peaks = layer["overview"], layer["overview_peak"]
        assert (cells["dtype"], peaks["dtype"]) == ("u8", "f32")
        found = np.frombuffer(_bytes(cells), np.uint8).reshape(cells["shape"])
        peaks = np.frombuffer(_bytes(peaks), "<f4")
        height, width = (-(-length // 48) for length in weights.shape[1:])
        exact = weights[:, :height, :width].mean((1, 2)).numpy()
        assert np.abs((found[:, 0, 0] / 255.0) ** 2 * peaks - exact).max() < 0.005 * peaks.max()


def _bytes(node):
    import base64

    return base64.b64decode(node["base64"])


def test_script_and_style(url):
    for name, kind in (("multihead.js", "text/javascript"), ("multihead.css", "text/css")):
        status, headers, body = get(url, name)
        assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        assert len(body) > 1000


def test_every_answer_is_shut(url):
    for path in ("", "multihead.js", "tile", "nothing", "/"):
        _, headers, _ = get(url, path)
        assert headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
            "img-src 'self' data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize(
    ("level", "y", "x", "rows", "columns"), [(0, 0, 0, 256, 256), (0, 1, 0, 37, 256), (1, 0, 0, 147, 147)]
)
def test_tiles(url, pooling, level, y, x, rows, columns):
    found = floats(url, f"tile?layer=0&head=2&z={level}&y={y}&x={x}&pooling={pooling}").view(rows, columns)
    exact, plain = (_cells(weights[2], level, y, x, pooling) for weights in truths(SELF))
    check(found, exact, plain)
    other = floats(url, f"tile?layer=0&head=3&z={level}&y={y}&x={x}&pooling={pooling}").view(rows, columns)
    with pytest.raises(AssertionError):
        check(other, exact, plain)


def _cells(weights, level, y, x, pooling):
    side = 1 << level
    weights = weights[y * 256 * side : (y + 1) * 256 * side, x * 256 * side : (x + 1) * 256 * side]
    parts = [torch.stack([_pool(cell, pooling) for cell in row.split(side, 1)]) for row in weights.split(side, 0)]
    return torch.stack(parts)


def _pool(cell, pooling):
    return cell.mean() if pooling == "mean" else cell.amax()


def test_rows(url):
    for layer, call, heads, queries in ((0, SELF, [3, 0], [0, 5, 292]), (1, SOME, [4, 1], ASKED)):
        for query in queries:
            named = ",".join(map(str, heads))
            found = floats(url, f"row?layer={layer}&heads={named}&query={query}").view(len(heads), TOKENS)
            check(found, *(weights[:, 0] for weights in truths(call, heads=heads, queries=[query])))


def test_columns(url):
    for layer, call, heads, queries in ((0, SELF, [3, 0], range(TOKENS)), (1, SOME, [4], ASKED)):
        named = ",".join(map(str, heads))
        found = floats(url, f"column?layer={layer}&heads={named}&key=5").view(len(heads), len(queries))
        check(found, *(weights[:, :, 5] for weights in truths(call, heads=heads, queries=queries)))


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize("token", [0, 7, 8])
def test_partners(url, direction, token):
    status, headers, body = get(url, f"partners?text=0&token={token}&direction={direction}")
    assert (status, headers["content-type"]) == (200, "application/json")
    expected = []
    for layer, call, heads, asked in ((0, SELF, [0, 1, 2, 3], range(TOKENS)), (1, SOME, [1, 4], ASKED)):
        weights = next(truths(call, heads=heads, queries=asked))
        if direction == "in":
            lines = weights[:, :, token]
        elif token in asked:
            lines = weights[:, list(asked).index(token)]
        else:
            continue
        for head, line in zip(heads, lines, strict=True):
            place = int(line.argmax())
            expected.append((layer, head, place if direction == "out" else asked[place], line.max().item()))
    found = [(link["layer"], link["head"], link["token"], link["weight"]) for link in json.loads(body)]
    assert [link[:3] for link in found] == [link[:3] for link in expected]
    assert [link[3] for link in found] == pytest.approx([link[3] for link in expected], abs=1e-6)


WHOLE = "a whole number"
PARTNERS = "partners?text=0&token=1&direction=in"
TILE = {"layer": 0, "head": 0, "z": 0, "y": 0, "x": 0, "pooling": "mean"}


def query_of(name, parameters):
    return f"{name}?" + "&".join(f"{key}={value}" for key, value in parameters.items() if value is not None)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("nothing", 404, "There is nothing of this name here."),
        ("tile/", 404, "There is nothing of this name here."),
        ("../tile", 404, "There is nothing of this name here."),
        ("%2e%2e/%2e%2e/etc/passwd", 404, "There is nothing of this name here."),
        ("multihead.js%00", 404, "There is nothing of this name here."),
        ("static/", 404, "There is nothing of this name here."),
        (query_of("tile", {**TILE, "layer": None}), 400, "The parameter layer is missing."),
        (query_of("tile", {**TILE, "layer": "-1"}), 400, "The parameter layer has '-1', expected a whole number."),
        (query_of("tile", {**TILE, "z": "1e3"}), 400, "The parameter z has '1e3', expected a whole number."),
        (query_of("tile", {**TILE, "z": "%D9%A3"}), 400, r"The parameter z has '\u0663', expected a whole number."),
        (query_of("tile", {**TILE, "y": "9" * 5000}), 400, f"The parameter y has '{'9' * 20}', expected {WHOLE}."),
        (query_of("tile", {**TILE, "x": ""}), 400, "The parameter x has '', expected a whole number."),
        (query_of("tile", {**TILE, "pooling": "sum"}), 400, "The parameter pooling is 'sum', expected mean or max."),
        (query_of("tile", TILE) + "&z=1", 400, "The parameter 'z' is given twice."),
        (query_of("tile", {**TILE, "layer": 3}), 404, "There is no layer at place 3: there are 2, counted from 0."),
        (query_of("tile", {**TILE, "head": 9}), 404, "Head 9 of layer 0 was not recorded: its heads are 0 to 3."),
        (query_of("tile", {**TILE, "z": 2}), 404, "There is no level 2: the map has levels 0 and 1."),
        (query_of("tile", {**TILE, "y": 2}), 404, "There is no tile (2, 0) at level 0: it has 2 × 2 tiles."),
        ("row?layer=1&heads=1&query=8", 404, "The query at position 8 was not recorded in layer 3."),
        ("row?layer=0&heads=1&query=293", 404, "The query at position 293 was not recorded in layer 0."),
        ("row?layer=0&heads=1,1&query=2", 400, "The parameter heads names one twice."),
        ("row?layer=0&heads=&query=2", 400, "The parameter heads has '', expected a whole number."),
        ("row?layer=0&heads=7&query=2", 404, "Head 7 of layer 0 was not recorded: its heads are 0 to 3."),
        ("column?layer=0&heads=1&key=293", 404, "Key 293 of layer 0 was not recorded: its keys are 0 to 292."),
        ("partners?text=1&token=0&direction=in", 404, "There is no text 1: there are 1, counted from 0."),
        ("partners?text=0&token=293&direction=in", 404, "There is no token 293: the text has 293."),
        ("partners?text=0&token=1&direction=up", 400, "The parameter direction is 'up', expected out or in."),
    ],
)  # fmt: skip
def test_what_is_refused(url, path, status, words):
    assert error(url, path) == (status, words)


def test_only_who_knows_the_secret_reads(url):
    secret = urlsplit(url).path.strip("/")
    for path in ("/", "//", f"/{secret[:-1]}/", f"/{secret}x/", f"/{secret.swapcase()}/tile", "/multihead.js", "/%FF/"):
        status, sentence = error(url, path)
        assert (status, "secret" in sentence) == (404, True)
    assert len(secret) >= 32
    status, headers, _ = get(url, f"/{secret}")
    assert (status, headers["location"]) == (308, f"/{secret}/")


def test_other_hosts_and_origins(url):
    netloc = urlsplit(url).netloc
    port = urlsplit(url).port
    for host in (netloc, f"localhost:{port}", f"LOCALHOST:{port}"):
        assert get(url, host=host)[0] == 200
        assert get(url, headers={"Origin": f"http://{host}"})[0] == 200
    others = "evil.example", "127.0.0.1.evil.example", "[::1]", "127.0.0.2", "127.0.0.1@evil.example"
    for host in ("", "evil.example", "127.0.0.1", f"127.0.0.1:{port + 1}", *(f"{other}:{port}" for other in others)):
        assert error(url, "", host=host) == (403, "The request is for another host than this server's.")
    sites = *(f"http://{other}:{port}" for other in others), f"https://{netloc}", f"http://{netloc}.evil.example"
    for origin in ("null", "", netloc, *sites):
        assert error(url, "", headers={"Origin": origin}) == (403, "The request comes from another site's page.")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_nothing_is_written(url, method):
    status, headers, body = get(url, method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["error"] == f"Nothing can be written here: {method} is neither GET nor HEAD."


def test_head(url):
    status, headers, body = get(url, query_of("tile", TILE), method="HEAD")
    assert (status, headers["content-length"], body) == (200, str(4 * 256 * 256), b"")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run.safetensors"
    made_recording().save(path)
    return path


@pytest.mark.parametrize("change", ["replaced", "cut", "gone", "touched"])
@pytest.mark.parametrize("by", ["path", "recording"])
def test_a_file_that_changes(saved, change, by):
    source = saved if by == "path" else load(saved)
    with serving(source) as url:
        assert get(url, query_of("tile", TILE))[0] == 200
        if change == "replaced":
            made_recording().save(saved)
        elif change == "cut":
            os.truncate(saved, 4096)
        elif change == "gone":
            saved.unlink()
        else:
            os.utime(saved, ns=(1, 1))
        words = "run.safetensors has been changed since it was opened: open it again."
        for path in ("", query_of("tile", TILE), query_of("tile", {**TILE, "x": 1}), "row?layer=1&heads=1&query=0"):
            assert error(url, path) == (409, words)


def test_a_file_that_changes_while_a_tile_is_computed(saved, monkeypatch):
    with serving(saved) as url:
        assert get(url)[0] == 200

        def tile(self, *asked, pause):
            os.truncate(saved, 4096)
            pause()

        monkeypatch.setattr(LayerMap, "tile", tile)
        assert error(url, query_of("tile", TILE))[0] == 409


def test_work_nobody_waits_for_ends(url, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def tile(self, *asked, pause):
        begun.set()
        try:
            for _ in range(600):
                time.sleep(0.05)
                pause()
        finally:
            ended.set()

    monkeypatch.setattr(LayerMap, "tile", tile)
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as client:
        path = where.path + query_of("tile", {**TILE, "y": 1, "x": 1})
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        assert begun.wait(60)
        assert not ended.is_set()
    assert ended.wait(60), "the client has left"
    monkeypatch.undo()
    assert get(url, query_of("tile", {**TILE, "y": 1, "x": 1}))[0] == 200


def test_the_same_tile_is_computed_once(monkeypatch):
    asked, computed = [], LayerMap.tile

    def tile(self, *given, pause):
        asked.append(given)
        time.sleep(0.5)
        return computed(self, *given, pause=pause)

    monkeypatch.setattr(LayerMap, "tile", tile)
    with serving(made_recording()) as url:
        assert get(url)[0] == 200
        bodies = []
        threads = [
            threading.Thread(target=lambda: bodies.append(get(url, query_of("tile", TILE))[2])) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(bodies) == 5
        assert len(set(bodies)) == 1
        assert get(url, query_of("tile", TILE))[2] == bodies[0]
    assert len(asked) == 1


def test_a_costly_tile_waits_for_the_blocks(monkeypatch):
    monkeypatch.setattr(maps, "COSTLY", 200 * 200)
    monkeypatch.setattr(maps, "BLOCKS", 150)
    measured, really = [], LayerMap.measure
    monkeypatch.setattr(
        LayerMap, "measure", lambda self, head, **options: measured.append(head) or really(self, head, **options)
    )
    with serving(made_recording()) as url:
        for pooling in ("mean", "max"):
            found = floats(url, query_of("tile", {**TILE, "z": 1, "head": 1, "pooling": pooling})).view(147, 147)
            check(found, *(_cells(weights[1], 1, 0, 0, pooling) for weights in truths(SELF)))
    assert measured == [1]


def without_numbers():
    """A recording of block maps alone."""
    found = measure(SELF, Statistics.only(blocks=(2, 2), block_peaks=True))[1]
    layer = replace(layer_of(SELF), q=None, k=None, statistics=Measurements.of(found.named()))
    return recording_of(layer)


def test_a_recording_without_queries_and_keys():
    with serving(without_numbers()) as url:
        document = document_in(get(url)[2])
        assert document["layers"][0]["overview"]["shape"] == [4, 48, 48]
        for pooling in ("mean", "max"):
            found = floats(url, query_of("tile", {**TILE, "z": 1, "pooling": pooling})).view(147, 147)
            check(found, *(_cells(weights[0], 1, 0, 0, pooling) for weights in truths(SELF)))
        status, words = error(url, query_of("tile", TILE))
        assert status == 404
        assert words.endswith("its block map begins at level 1, which is coarser than level 0.")
        for path in ("row?layer=0&heads=0&query=1", "column?layer=0&heads=0&key=1", PARTNERS):
            status, words = error(url, path)
            assert (status, words.startswith("Layer 0 holds no queries and keys")) == (404, True)


def test_one_token():
    call = made_call(queries=1, keys=1)
    with serving(recording_of(layer_of(call))) as url:
        assert document_in(get(url)[2])["layers"][0]["rows"] == 1
        assert floats(url, query_of("tile", TILE)).tolist() == [1.0]
        assert floats(url, "row?layer=0&heads=0,1&query=0").tolist() == [1.0, 1.0]


def test_queries_behind_a_cache():
    call = made_call(heads=2, queries=5, keys=11, mask=masks.causal())
    recording = recording_of(layer_of(call), texts={"text": [[str(place) for place in range(11)]]})
    with serving(recording) as url:
        assert document_in(get(url)[2])["layers"][0]["queries"] == [6, 7, 8, 9, 10]
        check(floats(url, "row?layer=0&heads=1&query=7"), *(weights[1, 1] for weights in truths(call)))
        assert error(url, "row?layer=0&heads=1&query=1")[0] == 404
        links = json.loads(get(url, "partners?text=0&token=10&direction=in")[2])
        assert [link["token"] for link in links] == [10, 10], "only the last query sees the last key"


def test_a_sample_stands_for_an_overview_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(served, "OVERVIEW_WEIGHTS", TOKENS * 4 * 48 * 3)
    call = made_call(heads=4, queries=TOKENS, keys=TOKENS, dim=8, spread=0.2)
    with serving(recording_of(layer_of(call))) as url:
        document = document_in(get(url)[2])
    assert document["provenance"]["overview measured on"] == "at most 144 queries of each head"
    cells = document["layers"][0]["overview"]
    found = np.frombuffer(_bytes(cells), np.uint8).reshape(cells["shape"]) / 255.0
    peak = np.frombuffer(_bytes(document["layers"][0]["overview_peak"]), "<f4")[:, None, None]
    exact = torch.nn.functional.adaptive_avg_pool2d(next(truths(call)), (42, 42)).numpy()
    assert cells["shape"] == [4, 42, 42]
    assert np.abs(found**2 * peak - exact).max() < 0.5 * exact.mean()


def test_of_a_large_recording_little_is_read_at_the_start(saved, monkeypatch):
    monkeypatch.setattr(front_opening, "EAGER_ROWS", 100)
    monkeypatch.setattr(served, "quick_traits", partial(served.quick_traits, most=0))
    layers = (layer_of(SELF, statistics=Statistics(blocks=(16, 16))),)
    replace(made_recording(), layers=layers).save(saved)
    recording = load(saved)
    with serving(recording) as url:
        start = document_in(get(url)[2])["start"]
        assert not {"q", "k"} & set(vars(recording.layers[0])), "they are read when they are asked for"
        assert floats(url, "row?layer=0&heads=0&query=3").sum() == pytest.approx(1, abs=1e-5)
        assert {"q", "k"} <= set(vars(recording.layers[0]))
    assert start == {"text": 0, "token": 0}


def test_each_piece_of_work_has_one_core(monkeypatch):
    threads = {}
    tile, line = LayerMap.tile, served.weights

    def noted(name, real):
        def asking(*given, **options):
            threads[name] = torch.get_num_threads()
            return real(*given, **options)

        return asking

    monkeypatch.setattr(LayerMap, "tile", noted("tile", tile))
    monkeypatch.setattr(served, "weights", noted("line", line))
    before = torch.get_num_threads()
    with serving(made_recording()) as url:
        get(url, query_of("tile", TILE))
        get(url, "row?layer=0&heads=0&query=3")
    late = []
    thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert threads == {"tile": 1, "line": 1}
    assert (late, torch.get_num_threads()) == ([before], before)


def test_too_many_heads_at_once(monkeypatch, url):
    monkeypatch.setattr(served, "ANSWER_BYTES", 4 * TOKENS)
    assert get(url, "row?layer=0&heads=0&query=3")[0] == 200
    assert error(url, "row?layer=0&heads=0,1&query=3") == (
        400,
        "2 heads of 293 numbers are too many at once: ask for fewer heads.",
    )


def test_a_bug_is_no_answer(url, monkeypatch, capfd):
    def broken(self, *asked, pause):
        raise ZeroDivisionError

    monkeypatch.setattr(LayerMap, "tile", broken)
    found = error(url, query_of("tile", {**TILE, "y": 1}))
    assert found == (500, "The server failed at this: its terminal says how.")


def test_nothing_to_show(tmp_path):
    with pytest.raises(ValueError, match="holds no layer, so there is nothing to show"):
        opened(replace(made_recording(), layers=(), texts={}))
    with pytest.raises(RecordingError, match="there is no sequence 1"):
        opened(made_recording(), item=1)
    bare = replace(layer_of(SELF), q=None, k=None)
    with pytest.raises(RecordingError, match="layer 0 holds no queries and keys"):
        Served(recording_of(bare))
    with pytest.raises(RecordingError, match="cannot read"):
        opened(tmp_path / "gone.safetensors")


def test_a_file_that_cannot_be_opened(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"no recording")
    told = []
    with pytest.raises(RecordingError, match=r"run\.safetensors is no recording"):
        serve(path, told=told.append)
    assert told[0].startswith("http://127.0.0.1:")


def test_who_asks_is_told_why_nothing_is_open(tmp_path):
    (tmp_path / "run.safetensors").write_bytes(b"no recording")
    site = Site(lambda: time.sleep(0.5) or opened(tmp_path / "run.safetensors"))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(get(site.url)))
    with site.running():
        asking.start()
        asking.join(20)
    assert answers[0][0] in (500, 503)


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SourceError, match=f"^port {port} is taken: name another, or none for a free one.$"):
            serve(made_recording(), port=port)
    for wrong in (-1, 65_536):
        with pytest.raises(SourceError, match=f"^port {wrong} is none: ports are 0"):
            serve(made_recording(), port=wrong)
    with pytest.raises(SourceError, match=r"^there is no host 'nowhere\.invalid' to serve at"):
        serve(made_recording(), host="nowhere.invalid")
    with pytest.raises(SourceError, match=r"^cannot serve at 192\.0\.2\.1 port 0: "):
        serve(made_recording(), host="192.0.2.1")


def test_missing_libraries(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"^serving needs starlette and uvicorn: pip install 'multihead\[view\]'"):
        serve(made_recording())


def test_everyone_on_the_network():
    site = Site(lambda: opened(made_recording()), host="0.0.0.0")
    assert site.exposed
    with site.running() as url:
        port = urlsplit(url).port
        assert get(url)[0] == 200
        assert get(url, host=f"192.0.2.7:{port}")[0] == 200, "a number, which nobody can lead elsewhere"
        assert get(url, host=f"evil.example:{port}")[0] == 403


@pytest.mark.parametrize("options", [["--serve"], ["--port", "0", "--token", "token200"]])
def test_the_command(saved, options):
    command = [sys.executable, "-m", "multihead", "view", str(saved), "--no-open", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            status, _, page = get(url)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")
    assert status == 200
    assert len(options) == 1 or document_in(page)["start"]["token"] == 200 + len(EVIL)


@pytest.fixture
def commanded(monkeypatch):
    """What the command would have served."""
    found = []

    def run(site):
        site.close()
        found.append(site._opening())

    monkeypatch.setattr(Site, "run", run)
    return found


def command(*arguments):
    return CliRunner().invoke(cli.app, ["view", *map(str, arguments), "--no-open"])


def test_a_page_that_is_too_large_is_served(saved, commanded, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command(saved).exit_code == 0
    assert not commanded
    assert (tmp_path / "attention.html").exists()
    # a function of this name stands before the module
    page = sys.modules["multihead.view.page"]
    # the header alone says so, or the recording
    for where, name, value in ((cli.serving, "SURELY", 1000), (page, "fits", partial(page.fits, most=1000))):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            answer = command(saved)
        assert answer.exit_code == 0
        assert answer.stdout.startswith("http://127.0.0.1:")
        assert isinstance(commanded.pop(), Served)
    assert [path.name for path in tmp_path.glob("*.html")] == ["attention.html"]
    with monkeypatch.context() as patch:
        patch.setattr(page, "LARGEST_PAGE", 1000)
        answer = command(saved, "--output", tmp_path / "large.html")
    assert (answer.exit_code, "the page would have about" in answer.stderr) == (2, True)


def test_what_the_command_refuses(saved, commanded, tmp_path):
    answer = command(saved, "--serve", "--output", tmp_path / "page.html")
    assert (answer.exit_code, answer.stderr) == (
        2,
        "multihead: --output writes the page to a file, and --serve, --host and --port serve it: choose one.\n",
    )
    for options, words in (
        (["--token", "nowhere"], "'nowhere' is not among the 293 tokens"),
        (["--port", "99999"], "port 99999 is none"),
    ):
        answer = command(saved, "--serve", *options)
        assert answer.exit_code == 2
        assert words in answer.stderr
        assert len(answer.stderr.splitlines()) == 1
    answer = command(tmp_path / "gone.safetensors", "--serve")
    assert (answer.exit_code, "cannot read" in answer.stderr) == (2, True)


def test_the_network_is_warned_of(saved, commanded):
    answer = command(saved, "--host", "0.0.0.0")
    assert answer.stderr == "multihead: anyone on the network who has this address can read the text.\n"


@pytest.mark.parametrize(
    ("header", "surely"),
    [
        ({"layers.0.q": {"shape": [2, 8, 1 << 16, 64]}}, False),
        ({"layers.0.q": {"shape": [2, 8, 1 << 16, 65]}}, True),
        ({"layers.0.statistics.blocks": {"shape": [1, 8, 1 << 16, 65]}}, False),
        ({"layers.0.q": {}}, False),
        ({"layers.0.q": {"shape": "many"}}, False),
        ([], False),
        (7, False),
    ],
)
def test_what_a_header_says_of_the_page(tmp_path, header, surely):
    text = json.dumps(header).encode()
    path = tmp_path / "run.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert is_surely_too_large(path) is surely


def test_what_is_no_header(tmp_path):
    path = tmp_path / "run.safetensors"
    for content in (b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[[", b"\x08" + bytes(7) + b"\xff" * 8):
        path.write_bytes(content)
        assert not is_surely_too_large(path)
    assert not is_surely_too_large(tmp_path)
    assert not is_surely_too_large(tmp_path / "gone")


def test_the_address_does_not_wait_for_torch(saved):
    program = (
        "import sys, threading\n"
        "from multihead.cli.serving import Door\n"
        "from multihead.web import Site\n"
        "Site.run = lambda self: sys.stdout.write(str('torch' in sys.modules))\n"
        "from pathlib import Path\n"
        f"Door(None, None, opens=False).serve(Path({str(saved)!r}), lambda recording: None)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False"
