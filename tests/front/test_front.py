"""The page of a large recording's file, made without torch: the same bytes as with torch, or none at all."""

import http.client
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.core import Measurements, Statistics
from multihead.errors import RecordingError
from multihead.front import front, opening
from multihead.front.front import front_of
from multihead.masks import Sizes
from multihead.recording import Layer, Recording, load
from multihead.view import served
from multihead.view.server import opened
from multihead.web import Refusal
from tests.accuracy import random_call
from tests.recording.examples import forged, selected

TOKENS = ["[CLS]", "the", "ani", "##mal", "did", "n't", "cross", "the", "street", "</script>", "."]
LENGTH = len(TOKENS)
BLOCKS = Statistics(blocks=(4, 4), block_peaks=True)
EVERY = Statistics.every(top=2, block=3, columns=(0, 5))
CAUSAL = masks.causal()


def recorded(*layers, texts=None):
    batch = layers[0].sizes.batch
    texts = {"text": [TOKENS, TOKENS[::-1]][:batch]} if texts is None else texts
    return Recording(layers, texts, {"model": "<b>made</b>", "prompt tokens": "4"})


def layer(statistics=BLOCKS, *, index=0, heads=None, queries=None, asking=LENGTH, changes=None, **options):
    call = random_call(queries=asking, keys=LENGTH, **options)
    return selected(call, index=index, heads=heads, queries=queries, statistics=statistics, **(changes or {}))


MADE = {
    "one layer": lambda: recorded(layer(mask=CAUSAL)),
    "no mask": lambda: recorded(layer()),
    "every statistic": lambda: recorded(layer(EVERY, mask=CAUSAL), layer(EVERY, index=4, mask=CAUSAL)),
    "each distance": lambda: recorded(layer(replace(BLOCKS, offsets=tuple(range(-11, 12))))),
    "sinks": lambda: recorded(layer(replace(BLOCKS, sink=True), sinks=True)),
    "a window": lambda: recorded(layer(replace(EVERY, rows=None), mask=CAUSAL & masks.sliding_window(3))),
    "some heads and queries": lambda: recorded(layer(heads=[4, 1], queries=[9, 2, 3], mask=CAUSAL)),
    "a cache": lambda: recorded(layer(asking=5, mask=CAUSAL)),
    "two texts": lambda: recorded(
        layer(asking=5, changes={"query_text": "target"}), texts={"target": [list("abcde")] * 2, "text": [TOKENS] * 2}
    ),
    "no tokens": lambda: recorded(layer(mask=CAUSAL), texts={}),
    "float64": lambda: recorded(layer(EVERY, mask=CAUSAL, dtype=torch.float64)),
    "no queries and keys": lambda: recorded(layer(mask=CAUSAL, changes={"q": None, "k": None})),
}


@pytest.fixture
def small_is_large(monkeypatch):
    """Take every recording for one whose page opens by its text, and whose heads are not measured."""
    monkeypatch.setattr(opening, "EAGER_ROWS", 0)
    monkeypatch.setattr(front, "MEASURED_PAIRS", 0)
    monkeypatch.setattr(served, "quick_traits", partial(served.quick_traits, most=0))


def page_of(path, **options):
    """The page that is made with torch."""
    content = opened(path, **options)
    content.close()
    return content.front.answer("").body


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("name", MADE)
def test_the_page_is_the_same(name, item, tmp_path):
    path = tmp_path / "run.safetensors"
    MADE[name]().save(path)
    found = front_of(path, item=item, title="so called")
    assert found is not None
    assert found.answer("").body == page_of(path, item=item, title="so called")
    assert found.answer("tile") is None
    assert found.document["layers"][0]["traits"]["entropy"][0] is not None


OTHERS = {
    "no blocks": lambda: recorded(layer(Statistics(), mask=CAUSAL)),
    "not in every layer": lambda: recorded(layer(), layer(Statistics(), index=1)),
    "padding": lambda: recorded(layer(mask=masks.padding(torch.ones(1, LENGTH, dtype=torch.bool)))),
    "a dense mask": lambda: recorded(layer(mask=masks.dense(torch.ones(LENGTH, LENGTH).tril().bool()))),
    "sinks that must be computed": lambda: recorded(layer(sinks=True)),
    "weights": lambda: Recording.from_weights([np.eye(3, dtype=np.float32)[None]], ["a", "b", "c"]),
    "a type that numpy lacks": lambda: recorded(
        replace(layer(), statistics=Measurements(blocks=torch.rand(2, 6, 3, 3, dtype=torch.bfloat16)))
    ),
    "a block map of no weights": lambda: recorded(
        replace(layer(), statistics=Measurements(blocks=torch.full((2, 6, 3, 3), torch.inf)))
    ),
    "more queries than tokens": lambda: recorded(layer(asking=13), texts={"text": [["word"] * 13] * 2}),
    "no layer": lambda: Recording((), {}),
}


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("name", OTHERS)
def test_what_has_to_wait_for_torch(name, tmp_path):
    path = tmp_path / "run.safetensors"
    OTHERS[name]().save(path)
    assert front_of(path) is None


@pytest.mark.usefixtures("small_is_large")
def test_a_sequence_that_is_not_there(tmp_path):
    path = tmp_path / "run.safetensors"
    MADE["one layer"]().save(path)
    assert front_of(path, item=2) is None


@pytest.mark.parametrize(("where", "name"), [(opening, "EAGER_ROWS"), (front, "MEASURED_PAIRS")])
@pytest.mark.usefixtures("small_is_large")
def test_small_recordings_open_with_what_their_heads_look_at(where, name, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    MADE["one layer"]().save(path)
    assert front_of(path) is not None
    monkeypatch.undo()
    monkeypatch.setattr(where, name, 0)
    assert front_of(path) is None


def masked(**fields):
    return lambda parts: parts.inner["masks"].append(fields)


DAMAGES = {
    "a mask of no kind": (masked(kind="strange"), "mask of unknown kind 'strange'"),
    "a mask without a kind": (masked(), "has no 'kind'"),
    "a mask of masks to come": (masked(kind="and", left=7, right=0), "names mask 7, which does not come before it"),
    "a prefix of no length": (masked(kind="prefix", length="long"), "is no whole number"),
    "a mask that is missing": (lambda parts: parts.inner["layers"][0].update(mask=3), "mask 3 is missing"),
    "a layer without heads": (lambda parts: parts.inner["layers"][0].pop("heads"), "has no 'heads'"),
}


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_headers_are_refused_in_the_same_words(name, tmp_path):
    change, words = DAMAGES[name]
    path = tmp_path / "run.safetensors"
    MADE["one layer"]().save(path)
    path = forged(path, change)
    assert front_of(path) is None
    with pytest.raises(RecordingError, match=f"forged.safetensors is a damaged recording: .*{words}"):
        opened(path)


@pytest.mark.usefixtures("small_is_large")
def test_a_damaged_block_map_is_refused_in_the_same_words(tmp_path):
    path = tmp_path / "run.safetensors"
    MADE["one layer"]().save(path)
    spoil(path)
    assert front_of(path) is None
    with pytest.raises(RecordingError, match=r"tensor layers\.0\.statistics\.blocks is not what was written"):
        opened(path)


def spoil(path: Path) -> None:
    """Change one byte of a block map."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8 : 8 + length])["layers.0.statistics.blocks"]["data_offsets"]
    content[8 + length + begin] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("change", ["replaced", "gone", "touched"])
def test_a_file_that_changes(change, tmp_path):
    path = tmp_path / "run.safetensors"
    MADE["one layer"]().save(path)
    found = front_of(path)
    assert found.answer("multihead.js").kind.startswith("text/javascript")
    if change == "replaced":
        MADE["one layer"]().save(path)
    elif change == "gone":
        path.unlink()
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(Refusal, match=r"run\.safetensors has been changed since it was opened"):
        found.answer("")
    with pytest.raises(RecordingError, match=r"changed while it was opened|cannot read"):
        opened(path, front=found)


LONG = 65_537
"""Tokens of a recording that is large by itself."""

WITHOUT_TORCH = """
import sys
from pathlib import Path
from multihead.front.front import front_of
found = front_of(Path(sys.argv[1]))
bodies = [found.answer(name).body for name in ("", "multihead.js", "multihead.css")]
assert "torch" not in sys.modules, "torch was imported"
sys.stdout.buffer.write(bodies[0])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "run.safetensors"
    blocks = torch.rand(1, 8, 257, 257, generator=torch.Generator().manual_seed(0))
    entropy = torch.rand(1, 8, LONG, generator=torch.Generator().manual_seed(1))
    made = Layer(
        index=0, name="attention", host="sdpa", sizes=Sizes(1, 8, LONG, LONG), heads=tuple(range(8)), mask=CAUSAL,
        kv_heads=tuple(range(8)),
        statistics=Measurements(blocks=blocks, block_size=torch.tensor([256, 256]), entropy=entropy),
    )  # fmt: skip
    Recording((made,), {"text": [[f"w{place}" for place in range(LONG)]]}).save(path)
    return path


def test_no_torch_is_imported_for_it(large):
    program = [sys.executable, "-c", WITHOUT_TORCH, str(large)]
    assert subprocess.run(program, capture_output=True, check=True).stdout == page_of(large)


def asked(url, name=""):
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
    try:
        connection.request("GET", where.path + name)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def served_by_command(path):
    command = [sys.executable, "-m", "multihead", "view", str(path), "--no-open", "--serve"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_answers_the_page_and_a_tile_asked_at_once(large):
    with served_by_command(large) as process:
        try:
            url = process.stdout.readline().strip()
            page = asked(url)
            status, tile = asked(url, "tile?layer=0&head=3&z=8&y=0&x=1&pooling=mean")
            again = asked(url)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert page == again == (200, page_of(large))
    blocks = load(large).layers[0].statistics.blocks[0, 3]
    assert status == 200
    assert np.frombuffer(tile, "<f4").tolist() == blocks[:256, 256:].flatten().tolist()
    assert (process.returncode, out, err) == (0, "", "")


def test_the_command_refuses_a_damaged_block_map(large, tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(large.read_bytes())
    spoil(path)
    with served_by_command(path) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 2
    assert out.startswith("http://127.0.0.1:")
    tensor = "tensor layers.0.statistics.blocks"
    sentence = f"{path} is a damaged recording: {tensor} is not what was written: its checksum does not fit."
    assert err == f"multihead: {sentence}\n"
