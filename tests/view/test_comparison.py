"""Two recordings on one page, and the blocks that a long text's page brings along."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from multihead import Statistics, masks
from multihead.kernels import measure
from multihead.recording import Recording
from multihead.recording.whole import blocks_of
from multihead.view import blocks
from multihead.view.blocks import block_maps
from multihead.view.comparison import comparison, write_comparison
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.reader import Page

TWO_TEXTS = {"query_text": "target", "key_text": "source"}


def pair(**options):
    return [recording_of(layer_of(made_call(seed=seed, **options))) for seed in (1, 2)]


def test_both_recordings_are_there_whole():
    first, second = pair(queries=7, keys=7)
    read = Page(comparison(first, second, names=("before", "after")))
    assert read.document["recordings"] == ["before", "after"]
    assert read.document["title"] == "before beside after"
    assert [layer["recording"] for layer in read.document["layers"]] == [0, 1]
    assert [text["name"] for text in read.document["texts"]] == ["A: text", "B: text"]
    assert [(layer["query_text"], layer["key_text"]) for layer in read.document["layers"]] == [(0, 0), (1, 1)]
    found = [read.weights(layer) for layer in read.document["layers"]]
    for weights, seed in zip(found, (1, 2), strict=True):
        np.testing.assert_allclose(weights, true_weights(made_call(queries=7, keys=7, seed=seed)), atol=1e-5, rtol=0)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_two_texts_each():
    recordings = [
        recording_of(layer_of(made_call(queries=3, keys=5, seed=seed), **TWO_TEXTS), texts=texts)
        for seed, texts in ((1, {"target": [["a"] * 3], "source": [["b"] * 5]}),) * 2
    ]
    read = Page(comparison(*recordings))
    assert [text["name"] for text in read.document["texts"]] == ["A: target", "A: source", "B: target", "B: source"]
    assert [(layer["query_text"], layer["key_text"]) for layer in read.document["layers"]] == [(0, 1), (2, 3)]


def test_names_come_from_models_that_differ():
    first, second = pair()
    called = [Recording(one.layers, one.texts, {"model": name}) for one, name in ((first, "small"), (second, "large"))]
    read = Page(comparison(*called))
    assert read.document["recordings"] == ["small", "large"]
    assert read.document["provenance"]["A, model"] == "small"
    assert Page(comparison(called[0], called[0])).document["recordings"] == ["first", "second"]


def test_what_cannot_be_compared(tmp_path):
    first, second = pair()
    with pytest.raises(ValueError, match="the recording holds no layer"):
        comparison(first, Recording((), {}))
    with pytest.raises(ValueError, match="item=3 out of range"):
        comparison(first, second, item=3)
    assert write_comparison(first, second, tmp_path / "pair.html").read_text(encoding="utf-8").startswith("<!doctype")


@pytest.mark.parametrize("kept", [None, [0, 3, 4, 700, 1100]])
def test_blocks_are_means_and_largest_weights(kept):
    call = made_call(queries=1101, keys=1101, heads=2, dim=4, mask=masks.causal())
    layer = layer_of(call, queries=kept) if kept else layer_of(call)
    weights = torch.from_numpy(true_weights(call))[:, kept or slice(None)]
    maps = block_maps(layer, 0)
    assert maps.side == 8
    for row, column in ((0, 0), (maps.means.shape[1] - 1, 0), (0, 137), (maps.means.shape[1] - 1, 137)):
        part = weights[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        torch.testing.assert_close(maps.means[:, row, column].double(), part.mean((1, 2)), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(maps.peaks[:, row, column].double(), part.amax((1, 2)), atol=1e-6, rtol=1e-4)
    shares, peaks = maps.coded()
    width = 1101 - 8 * 137
    assert shares[1, -1, 137] == round(
        255 * float(weights[1, -(len(weights[1]) % 8 or 8) :, 8 * 137 :].mean() * width) ** 0.5
    )
    assert peaks.max() == round(255 * float(weights.max()) ** 0.5)


def test_a_short_text_brings_no_blocks():
    assert block_maps(layer_of(made_call(queries=50, keys=50)), 0) is None


def test_blocks_of_given_weights():
    weights = torch.rand(1, 2, 5, 7).softmax(-1)
    layer = Recording.from_weights([weights], ["q"] * 5, key_tokens=["k"] * 7).layers[0]
    means, peaks = blocks_of(layer, 0, (2, 3))
    assert means.shape == peaks.shape == (2, 3, 3)
    torch.testing.assert_close(means[1, 2, 2], weights[0, 1, 4, 6])
    torch.testing.assert_close(means[0, 0, 1], weights[0, 0, :2, 3:6].mean())
    torch.testing.assert_close(peaks[0, 1, 0], weights[0, 0, 2:4, :3].amax())


def test_recorded_blocks_are_taken_and_not_measured_again(monkeypatch):
    call = made_call(queries=1101, keys=1101, heads=2, dim=4, mask=masks.causal())
    layer = layer_of(call)
    found = measure(call, Statistics.only(lse=True, blocks=(4, 4), block_peaks=True))[1]
    made = replace(layer, statistics=found)
    for values, expected in zip(vars(block_maps(made, 0)).values(), vars(block_maps(layer, 0)).values(), strict=True):
        torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-4)
    monkeypatch.setattr(blocks, "blocks_of", lambda *_: pytest.fail("measured again"))
    found.blocks.fill_(0.25)
    found.block_peaks.fill_(0.5)
    taken = block_maps(made, 0)
    assert taken.means.eq(0.25).all()
    assert taken.peaks.eq(0.5).all()
