"""The map in a real Chromium: what is drawn and read out, at every depth, is what the formula says."""

import random
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from multihead import masks
from multihead.recording import PROMPT_TOKENS
from multihead.view.comparison import comparison
from multihead.view.page import page, write_page
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.test_browser import chromium, opened, until  # noqa: F401

pytestmark = pytest.mark.browser


def cell_of(weights, level: int, row: int, column: int, pooling: str) -> float:
    """A cell by its definition, from one head's weights."""
    side = 2**level
    part = weights[row * side : (row + 1) * side, column * side : (column + 1) * side]
    return float(part.max()) if pooling == "max" else float(part.sum() / part.shape[0])


def asked(shown, head: int, level: int, row: int, column: int, pooling: str) -> float:
    return shown.tab.evaluate(f"multihead.cell(0, {head}, {level}, {row}, {column}, '{pooling}')")


def tile(shown, head: int, level: int, y: int, x: int, pooling: str) -> np.ndarray:
    return np.array(shown.tab.evaluate(f"multihead.tile(0, {head}, {level}, {y}, {x}, '{pooling}').then(t => [...t])"))


def see_map(shown) -> None:
    """Open the map, and wait until something is drawn."""
    while shown.state["view"] != "map":
        shown.tab.keyboard.press("v")
    shown.tab.locator(".map-stage canvas").first.wait_for()
    until(shown.tab, "document.querySelectorAll('.axis-text .label').length > 2")


def test_200_cells_at_every_depth_are_the_formulas(opened):  # noqa: F811
    call = made_call(queries=601, keys=601, heads=2, dim=5, spread=2.0, mask=masks.causal(), softcap=9.0)
    shown = opened(recording_of(layer_of(call))).ready()
    weights, draw = true_weights(call), random.Random(5)
    for _ in range(200):
        level, pooling, head = draw.randrange(3), draw.choice(["mean", "max"]), draw.randrange(2)
        row, column = (draw.randrange(-(-601 // 2**level)) for _ in range(2))
        found = asked(shown, head, level, row, column, pooling)
        assert found == pytest.approx(cell_of(weights[head], level, row, column, pooling), abs=1e-5 * 2**level)
    with pytest.raises(AssertionError):
        assert asked(shown, 0, 0, 300, 299, "mean") == pytest.approx(weights[1, 300, 299], abs=1e-5)


@pytest.mark.parametrize("kind", ["simd", "plain"])
def test_tiles_are_computed_by_vectors_where_they_may_run_and_else_plainly(opened, kind):  # noqa: F811
    call = made_call(queries=521, keys=521, heads=2, dim=7, spread=2.0, mask=masks.causal())
    html = page(recording_of(layer_of(call)))
    assert html.count(" 'wasm-unsafe-eval'") == 1
    shown = opened(html if kind == "simd" else html.replace(" 'wasm-unsafe-eval'", "")).ready()
    weights = true_weights(call)
    assert shown.tab.evaluate("multihead.tiles") == kind
    for level, y, x in ((0, 2, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0)):
        cells = -(-521 // 2**level)
        width = min(256, cells - 256 * x)
        for pooling in ("mean", "max"):
            drawn = tile(shown, 1, level, y, x, pooling).reshape(-1, width)
            for row in (0, len(drawn) // 2, len(drawn) - 1):
                for column in (0, width // 3, width - 1):
                    exact = cell_of(weights[1], level, 256 * y + row, 256 * x + column, pooling)
                    assert drawn[row, column] == pytest.approx(exact, abs=1e-5 * 2**level)
    # the browser says of itself that the policy forbade what was tried
    shown.complaints[:] = [one for one in shown.complaints if "WebAssembly" not in one and "wasm" not in one]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_tiles_are_drawn_from_weights_near_by_and_from_blocks_afar(opened, pooling):  # noqa: F811
    length = 1090
    call = made_call(queries=length, keys=length, heads=2, dim=4, spread=2.0)
    shown = opened(recording_of(layer_of(call))).ready()
    weights = true_weights(call)
    assert shown.tab.evaluate("multihead.document.layers[0].blocks.side") == 8
    for level in range(4):
        cells = -(-length // 2**level)
        x = (cells - 1) // 256
        width = cells - 256 * x
        drawn = tile(shown, 1, level, 0, x, pooling).reshape(-1, width)
        for row, column in ((0, 0), (17, width - 1), (drawn.shape[0] - 1, 1)):
            exact = cell_of(weights[1], level, row, 256 * x + column, pooling)
            # afar, cells are rounded to 8 bits of their square root
            allowed = 1e-5 * 2**level if level < 3 else exact**0.5 / 255 + 1e-5
            assert drawn[row, column] == pytest.approx(exact, abs=allowed)


def test_by_mouse_keys_and_address(opened):  # noqa: F811
    call = made_call(queries=40, keys=40, heads=3, spread=2.0)
    weights = true_weights(call)
    shown = opened(recording_of(layer_of(call)), start={"layer": 0, "heads": [1], "token": 7}).ready()
    see_map(shown)
    stage = shown.tab.locator(".map-stage")
    box = stage.bounding_box()
    readout = shown.tab.locator(".readout")

    stage.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    row, key = shown.state["token"], shown.state["key"]
    assert abs(row - 20) <= 1
    assert abs(key - 20) <= 1
    number = readout.locator('[data-head="1"] .number[data-value]')
    assert float(number.get_attribute("data-value")) == pytest.approx(weights[1, row, key], abs=1e-5)
    assert shown.shown("out", 1)[int(weights[1, row].argmax())] == pytest.approx(weights[1, row].max(), abs=1.1e-5)

    stage.focus()
    shown.tab.keyboard.press("ArrowDown")
    shown.tab.keyboard.press("ArrowLeft")
    assert (shown.state["token"], shown.state["key"]) == (row + 1, key - 1)
    until(shown.tab, f"document.querySelector('.readout .pair')?.dataset.row == '{row + 1}'")
    number.wait_for()
    assert float(number.get_attribute("data-value")) == pytest.approx(weights[1, row + 1, key - 1], abs=1e-5)

    until(shown.tab, f"location.hash.includes('token={row + 1}')")
    shown.tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(6):
        shown.tab.mouse.wheel(0, -200)
        shown.tab.wait_for_timeout(120)  # OpenSeadragon leaves out what comes faster
    until(shown.tab, "Number(new URLSearchParams(location.hash).get('at')?.split(',')[2] ?? 99) < 30")
    address, sight = shown.tab.url, shown.state["at"]
    shown.tab.reload()
    shown.ready()
    see_map(shown)
    shown.requests.remove(shown.url)  # that of the reload
    assert shown.tab.url == address
    assert shown.state["at"] == sight
    assert (shown.state["view"], shown.state["token"], shown.state["key"]) == ("map", row + 1, key - 1)


def test_the_back_button_undoes_and_forward_does_again(opened):  # noqa: F811
    shown = opened(recording_of(layer_of(made_call(queries=12, keys=12, heads=3)))).ready()
    see_map(shown)
    until(shown.tab, "location.hash.includes('view=map')")
    for scale in ("rank", "linear"):
        shown.tab.locator(f'.mapview [data-value="{scale}"]').click()
        until(shown.tab, f"location.hash.includes('scale={scale}')")
    shown.tab.locator('.mapview [data-value="max"]').click()
    until(shown.tab, "location.hash.includes('cells=max')")
    shown.tab.go_back()
    assert (shown.state["scale"], shown.state["pooling"]) == ("linear", "mean")
    shown.tab.go_back()
    assert shown.state["scale"] == "rank"
    shown.tab.go_forward()
    shown.tab.go_forward()
    assert (shown.state["scale"], shown.state["pooling"]) == ("linear", "max")


def test_what_is_painted_grows_with_the_weight(opened):  # noqa: F811
    call = made_call(queries=8, keys=8, heads=1, spread=3.0, mask=masks.causal())
    weights = true_weights(call)[0]
    shown = opened(recording_of(layer_of(call)), start={"layer": 0, "heads": [0], "token": 0}, height=1300).ready()
    see_map(shown)
    shown.tab.locator('.mapview [data-value="linear"]').click()
    shown.tab.keyboard.press("Escape")
    shown.tab.wait_for_timeout(600)
    frame = shown.tab.locator(".map-frame").bounding_box()
    side = frame["width"] / 8
    darkness = np.zeros((8, 8))
    shot = shown.tab.screenshot(type="png")
    picture = np.asarray(Image.open(BytesIO(shot)).convert("RGB")).astype(float)
    for row in range(8):
        for column in range(8):
            x, y = frame["x"] + (column + 0.5) * side, frame["y"] + (row + 0.5) * side
            darkness[row, column] = 255 - picture[int(y), int(x), 0]
    # the colour's red is 0, on white: darkness is the opacity
    assert np.abs(darkness / 255 - weights).max() < 0.02
    assert np.abs(darkness.T / 255 - weights).max() > 0.2


def test_fingers_pin_and_pinch(chromium, tmp_path):  # noqa: F811
    path = write_page(recording_of(layer_of(made_call(queries=20, keys=20))), tmp_path / "touch.html")
    context = chromium.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True, offline=True)
    tab = context.new_page()
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(path.as_uri() + "#view=map")
    tab.evaluate("multihead.ready")
    until(tab, "document.querySelectorAll('.axis-text .label').length > 2")
    tab.locator(".map-stage").scroll_into_view_if_needed()
    frame = tab.locator(".map-frame").bounding_box()
    tab.touchscreen.tap(frame["x"] + frame["width"] * 0.375, frame["y"] + frame["height"] * 0.625)
    until(tab, "multihead.state.key === 7 && multihead.state.token === 12")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
    context.close()


def test_two_recordings_and_their_difference(opened):  # noqa: F811
    calls = [made_call(queries=15, keys=15, heads=2, spread=2.0, seed=seed) for seed in (1, 2)]
    first, second = (true_weights(call) for call in calls)
    pair = [recording_of(layer_of(call)) for call in calls]
    shown = opened(comparison(*pair, names=("before", "after"))).ready()
    see_map(shown)
    titles = shown.tab.locator(".map-title").all_inner_texts()
    assert titles == ["A: before", "B: after", "A − B"]
    shown.tab.locator(".map-stage").nth(2).focus()
    shown.tab.keyboard.press("Shift+ArrowDown")
    row, key = shown.state["token"], shown.state["key"]
    head = shown.state["heads"][0]
    number = shown.tab.locator(f'.readout [data-head="{head}"] .number[data-other]')
    until(shown.tab, f"document.querySelector('.readout .pair')?.dataset.row == '{row}'")
    number.wait_for()
    assert float(number.get_attribute("data-value")) == pytest.approx(first[head, row, key], abs=1e-5)
    assert float(number.get_attribute("data-other")) == pytest.approx(second[head, row, key], abs=1e-5)
    sign = "+" if first[head, row, key] >= second[head, row, key] else "−"
    assert f", {sign}" in number.inner_text()


def test_recordings_of_other_lengths_stand_side_by_side_without_a_difference(opened):  # noqa: F811
    pair = [recording_of(layer_of(made_call(queries=length, keys=length))) for length in (9, 14)]
    shown = opened(comparison(*pair)).ready()
    see_map(shown)
    complaint = shown.tab.locator(".map-complaint:visible")
    assert complaint.inner_text().startswith("No difference can be drawn: the first has 9 queries and 9 keys")


def test_one_token_is_a_map_too(opened):  # noqa: F811
    shown = opened(recording_of(layer_of(made_call(queries=1, keys=1, heads=1)))).ready()
    while shown.state["view"] != "map":
        shown.tab.keyboard.press("v")
    until(shown.tab, "document.querySelectorAll('.axis-text .label').length == 2")
    assert asked(shown, 0, 0, 0, 0, "mean") == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(shown.row(0, 0, 0), torch.ones(1, dtype=torch.float64), atol=1e-5, rtol=0)


def test_what_a_model_wrote_is_marked(opened):  # noqa: F811
    layer = layer_of(made_call(queries=12, keys=12, mask=masks.causal()))
    shown = opened(recording_of(layer, provenance={PROMPT_TOKENS: "7"}), height=1300).ready()
    see_map(shown)
    frame = shown.tab.locator(".map-frame").bounding_box()
    for kind, side, size in (("row", "y", "height"), ("column", "x", "width")):
        written = shown.tab.locator(f".written.{kind}").bounding_box()
        assert written[side] - frame[side] == pytest.approx(7 / 12 * frame[size], abs=2)
    shown.tab.keyboard.press("v")
    for side in ("query", "key"):
        assert [row.get_attribute("data-token") for row in shown.tab.locator(f".column.{side} .answers").all()] == ["7"]
        label = shown.tab.locator(f".column.{side}").get_attribute("aria-label")
        assert label.endswith("text, written from token 7 on")
    shown.tab.keyboard.press("v")
    begins = shown.tab.locator(".answer-begins")
    assert begins.inner_text() == "written from here on"
    top = begins.bounding_box()["y"]
    places = [shown.tab.locator(f'.flow .token[data-token="{token}"]').bounding_box()["y"] for token in (6, 7)]
    assert places[0] < top < places[1]
