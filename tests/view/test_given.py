"""Weights that someone already had, on the page: the numbers are those that were given, within what the page says."""

import math

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.core import reference
from multihead.recording import Recording, load
from multihead.view import page as page_of
from multihead.view.page import LARGEST_PAGE
from multihead.view.rounded import compressed_bytes, rounded
from tests.view import test_browser
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.reader import Page

chromium, opened = test_browser.chromium, test_browser.opened

HALF = 0.5 / 65535
TOKENS = [f"token{place}" for place in range(11)]


def made(**options) -> torch.Tensor:
    """(1, 3, 11, 11) float64 weights, or of other sizes."""
    return reference(made_call(**{"queries": 11, "keys": 11, "spread": 2.0} | options)).weights


def test_a_page_gives_back_the_weights():
    weights = [made(seed=1, mask=masks.causal(), batch=2), made(seed=2, heads=5, batch=2)]
    recording = Recording.from_weights(weights, [TOKENS] * 2, layers=[4, 7], provenance={"model": "made"})
    read = Page(page_of(recording, item=1))
    assert [(layer["index"], layer["name"]) for layer in read.document["layers"]] == [
        (4, "weights[0]"),
        (7, "weights[1]"),
    ]
    for layer, given, held in zip(read.document["layers"], weights, recording, strict=True):
        found = read.weights(layer)
        error = np.abs(found - given[1].numpy()).max()
        assert 0 < error <= read.document["accuracy"] <= HALF * (1 + 1e-12)
        assert layer["weights"]["dtype"] == "u16"
        np.testing.assert_allclose(read.array(layer["entropy"]), held.statistics.entropy[1], rtol=1e-6)
        overview, peak = read.array(layer["overview"]) / 255.0, read.array(layer["overview_peak"])
        np.testing.assert_allclose(overview**2 * peak[:, None, None], given[1], atol=5e-3)
    # a rounding to eight bits, another head or another sequence would be seen
    assert np.abs(np.round(given[1].numpy() * 255) / 255 - given[1].numpy()).max() > 10 * HALF
    assert np.abs(found - given[1].numpy()[[1, 0, 2, 3, 4]]).max() > 1e-2
    assert np.abs(found - given[0].numpy()).max() > 1e-2


def test_every_number_is_within_half_a_step():
    every = (torch.arange(-2, 131_073, dtype=torch.float64) / 131_070).clamp(0.0, 1.0)
    found = rounded(every.view(1, 1, 5, -1))
    np.testing.assert_array_equal(found.weights.ravel()[2::2], np.arange(65_537).clip(max=65_535))
    assert found.accuracy == pytest.approx(HALF, rel=1e-9)
    assert (found.weights.dtype, found.weights.min(), found.weights.max()) == (np.uint16, 0, 65_535)


def test_a_weight_above_one_becomes_one_and_the_page_says_by_how_much():
    weights = torch.eye(11).expand(1, 3, 11, 11) * 1.0005
    read = Page(page_of(Recording.from_weights([weights], TOKENS)))
    assert read.weights(read.document["layers"][0]).max() == 1.0
    assert read.document["accuracy"] == pytest.approx(5e-4, rel=1e-3)


def test_layers_of_both_kinds_on_one_page():
    call = made_call(queries=11, keys=11, seed=1)
    given = Recording.from_weights([made(seed=2)], TOKENS, layers=[1])
    seen = recording_of(layer_of(call, index=0), layer_of(call, index=2), texts={"text": [TOKENS]})
    layers = (seen.layers[0], given.layers[0], seen.layers[1])
    read = Page(page_of(Recording(layers, given.texts)))
    expected = (true_weights(call), made(seed=2)[0].numpy(), true_weights(call))
    assert [layer["q"] is None for layer in read.document["layers"]] == [False, True, False]
    for layer, weights in zip(read.document["layers"], expected, strict=True):
        assert np.abs(read.weights(layer) - weights).max() <= read.document["accuracy"] <= 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 2, 3, 7)])
def test_small_ones(shape):
    weights = torch.rand(shape).softmax(-1)
    recording = Recording.from_weights([weights], ["ask"] * shape[2], key_tokens=["answer"] * shape[3])
    read = Page(page_of(recording))
    assert np.abs(read.weights(read.document["layers"][0]) - weights[0].double().numpy()).max() <= HALF * (1 + 1e-12)
    assert [text["name"] for text in read.document["texts"]] == ["target", "source"]


def test_the_same_page_from_a_file(tmp_path):
    recording = Recording.from_weights([made(batch=2)], [TOKENS] * 2)
    recording.save(tmp_path / "run.safetensors")
    assert page_of(load(tmp_path / "run.safetensors"), item=1) == page_of(recording, item=1)
    assert page_of(recording, item=1) != page_of(recording)


def test_size_is_estimated_from_the_numbers():
    noise, nothing = torch.rand(1, 4, 97, 97).softmax(-1), torch.eye(97).expand(1, 4, 97, 97)
    assert compressed_bytes(noise) > 20 * compressed_bytes(nothing)
    empty = len(page_of(Recording.from_weights([nothing[:, :, :1, :1]], ["a"])))
    page = page_of(Recording.from_weights([noise], [str(place) for place in range(97)]))
    assert len(page) - empty == pytest.approx(compressed_bytes(noise) * 1.17, rel=0.15)


def test_a_page_too_large_is_refused_with_what_fits():
    weights = torch.rand(1, 11, 1021, 1021)
    recording = Recording.from_weights([weights] * 4, [str(place) for place in range(1021)])
    with pytest.raises(ValueError, match=r"the page would have about 1\d\d MB, more than 64 MB") as caught:
        page_of(recording)
    total = 4 * compressed_bytes(weights) * 1.17
    fitting = 10 * math.floor(1021 * math.sqrt(LARGEST_PAGE / total) / 10)
    words = str(caught.value)
    assert f"the first {fitting} of the 1021 tokens" in words
    assert "2 of the 4 layers" in words


@pytest.mark.browser
class TestInABrowser:
    def page(self, opened, **start) -> tuple[test_browser.Opened, list[np.ndarray]]:
        weights = [made(seed=1, mask=masks.causal()), made(seed=2)]
        weights[1][0, 2, 6] = 0.0
        recording = Recording.from_weights(weights, TOKENS)
        return opened(recording, start={"layer": 0, "heads": [1], "text": 0, "token": 4} | start).ready(), [
            layer[0].numpy() for layer in weights
        ]

    def accuracy(self, shown) -> float:
        footer = shown.tab.locator("footer .accuracy")
        assert "the weights are those that were given" in footer.inner_text()
        return float(footer.get_attribute("data-accuracy"))

    def test_every_row_and_column(self, opened):
        shown, weights = self.page(opened)
        worst, accuracy = 0.0, self.accuracy(shown)
        for place, layer in enumerate(weights):
            for head in range(3):
                for token in range(11):
                    row, column = shown.row(place, head, token).numpy(), shown.column(place, head, token).numpy()
                    worst = max(
                        worst, np.abs(row - layer[head, token]).max(), np.abs(column - layer[head, :, token]).max()
                    )
        assert 0 < worst <= accuracy <= HALF * (1 + 1e-12)
        assert np.abs(shown.row(0, 1, 4).numpy() - weights[0][2, 4]).max() > 1e-2

    def test_numbers_on_screen(self, opened):
        shown, weights = self.page(opened)
        allowed = self.accuracy(shown) + 5e-7
        for direction, expected in (("out", weights[0][1, 4]), ("in", weights[0][1, :, 4])):
            numbers = shown.shown(direction, 1)
            assert len(numbers) >= 3
            assert max(numbers, key=numbers.get) == expected.argmax()
            for token, weight in numbers.items():
                assert weight == pytest.approx(expected[token], abs=allowed)
        chips = shown.tab.locator(".chip[data-weight]").all()
        assert len(chips) == 6
        for chip in chips:
            line = weights[int(chip.get_attribute("data-layer"))][int(chip.get_attribute("data-head")), 4]
            assert float(chip.get_attribute("data-weight")) == pytest.approx(line.max(), abs=allowed)
            assert int(chip.get_attribute("data-token")) == line.argmax()

    def test_a_row_of_zeros(self, opened):
        shown, _ = self.page(opened, layer=1, heads=[2], token=6)
        assert shown.tab.locator('.panel [data-head="2"] [data-blind]').count() >= 1

    def test_the_map(self, opened):
        weights = made(seed=3, queries=1500, keys=1500, heads=2, spread=0.5)[0].numpy()
        recording = Recording.from_weights([weights], [str(place) for place in range(1500)])
        shown = opened(recording).ready()
        address = "#layer=0&heads=1&text=0&token=150&view=map&cells=mean&key=150"
        shown.tab.evaluate(f"location.hash = '{address}'")
        accuracy = self.accuracy(shown)
        assert float(self.readout(shown, 0)["value"]) == pytest.approx(weights[1, 150, 150], abs=accuracy)
        assert weights[1, 150, 150] > 20 * accuracy
        box = shown.tab.locator(".map-stage").bounding_box()
        found = self.readout(shown, 1, (box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"]))
        level, row, column = (int(found[name]) for name in ("level", "row", "column"))
        cell = weights[1, row << level : row + 1 << level, column << level : column + 1 << level]
        mean = cell.sum() / len(cell)
        assert float(found["value"]) == pytest.approx(mean, abs=accuracy * cell.shape[1])
        assert mean > 20 * accuracy * cell.shape[1]

    def readout(self, shown, least: int, pointer: tuple[float, float] | None = None) -> dict[str, str]:
        """The cell that the map reads out and its number, seen at one moment, once it is of this level or coarser."""
        script = """() => {
            const pair = document.querySelector(".readout .pair[data-level]");
            const number = document.querySelector(".readout .number[data-value]");
            return pair && number && { ...pair.dataset, ...number.dataset };
        }"""
        for round_ in range(600):
            if pointer is not None:
                # who points before the map is drawn moves on
                shown.tab.mouse.move(pointer[0] + round_ % 2, pointer[1])
            found = shown.tab.evaluate(script)
            if found and int(found["level"]) >= least:
                return found
            shown.tab.wait_for_timeout(50)
        raise AssertionError(f"no cell of level {least} was read out: {found}")


def test_half_precision_is_given_back_too():
    weights = made().to(torch.bfloat16)
    recording = Recording.from_weights([weights], TOKENS)
    read = Page(page_of(recording))
    assert np.abs(read.weights(read.document["layers"][0]) - weights[0].double().numpy()).max() <= HALF * (1 + 1e-12)
