"""Pictures and sounds in a real Chromium: what stands over them is what the formula says, and keys move over them."""

import numpy as np
import pytest
import torch

from multihead.recording import Recording
from multihead.view import Frames, Picture, page
from multihead.view.server import serving
from tests.view.made import layer_of, made_call, recording_of, true_weights
from tests.view.test_browser import chromium, opened  # noqa: F401

pytest.importorskip("PIL")
pytestmark = pytest.mark.browser

ROWS, COLUMNS = 5, 7
TOKENS = 1 + ROWS * COLUMNS


def noise(height=50, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeing(**options) -> tuple[torch.Tensor, Recording]:
    call = made_call(queries=TOKENS, keys=TOKENS, spread=1.7)
    recording = recording_of(layer_of(call, **options), texts={"text": [[str(place) for place in range(TOKENS)]]})
    return torch.from_numpy(true_weights(call)), recording


def crossing(keys=TOKENS) -> tuple[torch.Tensor, Recording]:
    call = made_call(queries=11, keys=keys, spread=1.7)
    words = layer_of(made_call(queries=11, keys=11), index=0, query_text="caption", key_text="caption")
    layer = layer_of(call, index=1, query_text="caption", key_text="picture")
    tokens = ["a", "tower", "with", "three", "roofs", "stands", "above", "the", "quiet", "lake", "."]
    return torch.from_numpy(true_weights(call)), recording_of(words, layer, texts={"caption": [tokens]})


PICTURES = {"text": Picture(noise(), (ROWS, COLUMNS))}
CROSSED = {"picture": Picture(noise(), (ROWS, COLUMNS))}


def over(shown, selector=".patch-numbers span"):
    """The numbers over the picture: (head, token) to weight."""
    return {
        (int(one.get_attribute("data-head")), int(one.get_attribute("data-token"))): float(
            one.get_attribute("data-weight")
        )
        for one in shown.tab.locator(selector).all()
    }


def colours(shown):
    """The overlay's colour and opacity in the middle of each patch, (rows, columns, 4)."""
    found = shown.tab.evaluate(
        """([rows, columns]) => {
            const canvas = document.querySelector(".picture canvas");
            const { width, height } = canvas;
            const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            return Array.from({ length: rows * columns }, (_, i) => {
                const at = (place, count, size) => Math.floor(((place + 0.5) * size) / count);
                const [x, y] = [at(i % columns, columns, width), at(Math.floor(i / columns), rows, height)];
                return [...context.getImageData(x, y, 1, 1).data];
            });
        }""",
        [ROWS, COLUMNS],
    )
    return np.array(found, float).reshape(ROWS, COLUMNS, 4)


def middle(shown, token, count=TOKENS):
    """Where a patch is on the screen."""
    box = shown.tab.locator(".picture").bounding_box()
    row, column = divmod(token - 1, COLUMNS)
    return box["x"] + box["width"] * (column + 0.5) / COLUMNS, box["y"] + box["height"] * (row + 0.5) / ROWS


def test_numbers_and_colours_over_the_picture_are_the_weights(opened):  # noqa: F811
    weights, recording = seeing()
    text = page(recording, pictures=PICTURES, start={"layer": 0, "heads": [1], "text": 0, "token": 0})
    shown = opened(text).ready()
    assert shown.state["view"] == "picture"
    expected = weights[1, 0, 1:]
    numbers = over(shown)
    assert (1, int(expected.argmax()) + 1) in numbers
    for (head, token), number in numbers.items():
        assert number == pytest.approx(weights[head, 0, token].item(), abs=1.1e-5)
    painted = colours(shown)
    opacity = (expected / expected.max()).reshape(ROWS, COLUMNS).numpy()
    np.testing.assert_allclose(painted[..., 3] / 255, 0.86 * opacity, atol=0.006)
    np.testing.assert_allclose(painted[opacity > 0.5][:, :3], [[0xD5, 0x5E, 0x00]] * (opacity > 0.5).sum(), atol=3)
    token = int(expected.argmax()) + 1
    read = shown.tab.locator(".pictureview .readout .number[data-value]")
    assert float(read.get_attribute("data-value")) == pytest.approx(weights[1, 0, token].item(), abs=1e-5)


def test_several_heads_share_the_patches(opened):  # noqa: F811
    weights, recording = seeing()
    text = page(recording, pictures=PICTURES, start={"layer": 0, "heads": [0, 1, 2], "text": 0, "token": 17})
    shown = opened(text).ready()
    shown.tab.locator('.pictureview [data-value="log"]').click()
    patches = weights[:, 17, 1:].reshape(3, ROWS, COLUMNS).numpy()
    each = np.clip(1 - np.log(np.maximum(patches, 1e-300)) / np.log(1e-5), 0, 1)
    painted = colours(shown)
    np.testing.assert_allclose(painted[..., 3] / 255, 0.86 * (1 - np.prod(1 - each, 0)), atol=0.006)
    own = np.array([[0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00], [0x00, 0x9E, 0x73]], float)
    mixture = np.einsum("hrc,hk->rck", each, own) / each.sum(0)[..., None]
    # a canvas keeps colours times opacity, so that faint ones come back less exactly
    clear = painted[..., 3] > 64
    assert clear.sum() > 20
    np.testing.assert_allclose(painted[clear][:, :3], mixture[clear], atol=5)
    assert {head for head, _ in over(shown)} == {0, 1, 2}


def test_pointing_at_patches_and_keeping_them(opened):  # noqa: F811
    weights, recording = seeing()
    text = page(recording, pictures=PICTURES, start={"layer": 0, "heads": [2], "text": 0, "token": 0})
    shown = opened(text).ready()
    for token in (1, 20, TOKENS - 1):
        shown.tab.mouse.move(*middle(shown, token))
        shown.tab.locator(f'.readout [data-key="{token}"]').wait_for()
        assert shown.state["hover"] == {"text": 0, "token": token, "direction": "out"}
        read = shown.tab.locator(".pictureview .readout .number[data-value]")
        assert float(read.get_attribute("data-value")) == pytest.approx(weights[2, 0, token].item(), abs=1e-5)
    shown.tab.mouse.click(*middle(shown, 20))
    assert shown.state["token"] == 20
    shown.tab.mouse.move(2, 2)
    shown.tab.locator('.toolbar [data-direction="in"]').click()
    for (head, token), number in over(shown).items():
        assert number == pytest.approx(weights[head, token, 20].item(), abs=1.1e-5)
    shown.tab.locator('.beside button[data-token="0"]').click()
    assert shown.state["token"] == 0
    assert shown.tab.locator('.beside button[aria-pressed="true"]').inner_text().startswith("[CLS]")


def test_keys_move_over_the_patches(opened):  # noqa: F811
    weights, recording = seeing()
    text = page(recording, pictures=PICTURES, start={"layer": 0, "heads": [1], "text": 0, "token": 0})
    shown = opened(text).ready()
    grid = shown.tab.get_by_role("grid", name="5 rows of 7 patches")
    grid.focus()
    press = shown.tab.keyboard.press
    tokens = []
    for key in (
        "ArrowRight",
        "ArrowRight",
        "ArrowDown",
        "ArrowDown",
        "ArrowLeft",
        "ArrowUp",
        "End",
        "PageDown",
        "ArrowDown",
    ):
        press(key)
        tokens.append(shown.state["token"])
    assert tokens == [1, 2, 9, 16, 15, 8, 14, 35, 35]
    cell = grid.get_by_role("gridcell")
    assert cell.get_attribute("id") == grid.get_attribute("aria-activedescendant")
    assert (cell.get_attribute("aria-selected"), cell.get_attribute("aria-colindex")) == ("true", "7")
    own = f"{weights[1, 35, 35].item():.3f}"
    assert cell.get_attribute("aria-label") == f"patch row 4, column 6, head 1 {own}"
    outlines = "one => getComputedStyle(one).outlineWidth"
    assert [one.evaluate(outlines) for one in (grid, cell)] == ["2px", "3px"]
    box, whole = cell.bounding_box(), grid.bounding_box()
    assert box["x"] + box["width"] == pytest.approx(whole["x"] + whole["width"], abs=0.6)
    assert box["y"] + box["height"] == pytest.approx(whole["y"] + whole["height"], abs=0.6)
    press("v")
    assert shown.state["view"] == "lines"


def test_words_that_look_at_a_picture(opened):  # noqa: F811
    weights, recording = crossing()
    text = page(recording, pictures=CROSSED, start={"layer": 1, "heads": [0, 1], "text": 0, "token": 1})
    shown = opened(text).ready()
    assert shown.tab.locator(".picture-words .token.focused").inner_text() == "tower"
    numbers = over(shown)
    assert numbers
    for (head, token), number in numbers.items():
        assert number == pytest.approx(weights[head, 1, token].item(), abs=1.1e-5)
    shown.tab.locator('.picture-words .token[data-token="9"]').click()
    assert (shown.state["token"], shown.state["direction"]) == (9, "out")
    shown.tab.mouse.click(*middle(shown, 13))
    assert (shown.state["text"], shown.state["token"], shown.state["direction"]) == (1, 13, "in")
    shaded = shown.tab.locator(".picture-words .token[data-weight]").all()
    largest = weights[:2, :, 13].amax(0)
    assert {int(one.get_attribute("data-token")) for one in shaded} == set(np.flatnonzero(largest >= 0.01).tolist())
    for one in shaded:
        token = int(one.get_attribute("data-token"))
        assert float(one.get_attribute("data-weight")) == pytest.approx(largest[token].item(), abs=1.1e-5)
    press = shown.tab.keyboard.press
    press("k")
    assert (shown.state["layer"], shown.state["view"]) == (0, "lines")
    assert shown.tab.locator('.toolbar [data-view="picture"]').is_hidden()
    press("j")
    assert shown.state["view"] == "picture"


def test_a_long_text_scrolls_by_itself_and_the_page_stays(opened):  # noqa: F811
    call = made_call(queries=1201, keys=TOKENS)
    layer = layer_of(call, query_text="caption", key_text="picture")
    recording = recording_of(layer, texts={"caption": [["word"] * 1201]})
    text = page(recording, pictures=CROSSED, start={"layer": 0, "heads": [0], "text": 0, "token": 1100})
    shown = opened(text, width=360, height=640).ready()
    chosen = shown.tab.locator(".picture-words .token.focused")
    words, box = shown.tab.locator(".picture-words").bounding_box(), chosen.bounding_box()
    assert words["y"] <= box["y"] <= words["y"] + words["height"]
    assert shown.tab.locator(".picture-words .token").count() < 1201
    shown.tab.evaluate("scrollTo(0, 700)")
    before = shown.tab.evaluate("scrollY")
    assert before > 300
    shown.tab.keyboard.press("a")
    assert shown.state["heads"] == [0, 1, 2]
    # what stands above may become a line longer
    assert shown.tab.evaluate("scrollY") == pytest.approx(before, abs=60)


def test_words_that_look_along_the_time(opened):  # noqa: F811
    weights, recording = crossing(keys=151)
    spectrogram = np.random.default_rng(0).random((20, 302))
    text = page(
        recording,
        pictures={"picture": Frames(0.02, spectrogram)},
        start={"layer": 1, "heads": [2], "text": 0, "token": 4},
    )
    shown = opened(text).ready()
    strongest = int(weights[2, 4].argmax())
    (((head, token), number),) = over(shown, ".frame-numbers span").items()
    assert (head, token) == (2, strongest)
    assert number == pytest.approx(weights[2, 4, strongest].item(), abs=1.1e-5)
    label = shown.tab.locator(".frame-numbers span").inner_text()
    assert label.startswith(f"{strongest * 0.02:.2f} s")
    ticks = shown.tab.locator(".time-axis span").all_inner_texts()
    assert ticks[0].startswith("0")
    assert all(tick.endswith(" s") for tick in ticks)
    slider = shown.tab.get_by_role("slider")
    slider.focus()
    shown.tab.keyboard.press("ArrowRight")
    shown.tab.keyboard.press("End")
    assert (shown.state["text"], shown.state["token"]) == (1, 150)
    assert slider.get_attribute("aria-valuetext") == "3.00 s"
    shown.tab.keyboard.press("Shift+ArrowLeft")
    assert shown.state["token"] == 140
    box = slider.bounding_box()
    shown.tab.mouse.click(box["x"] + box["width"] * 75.5 / 151, box["y"] + 20)
    assert shown.state["token"] == 75
    shaded = {
        int(one.get_attribute("data-token")): float(one.get_attribute("data-weight"))
        for one in shown.tab.locator(".picture-words .token[data-weight]").all()
    }
    for token, number in shaded.items():
        assert number == pytest.approx(weights[2, token, 75].item(), abs=1.1e-5)


def test_frames_that_look_at_each_other_have_a_plain_strip(opened):  # noqa: F811
    weights, recording = seeing()
    shown = opened(
        page(recording, pictures={"text": Frames(0.5)}, start={"layer": 0, "heads": [0], "text": 0, "token": 12})
    ).ready()
    assert shown.tab.locator(".sound img").count() == 0
    assert shown.tab.get_by_role("button", name="grey picture").is_hidden()
    ((_, number),) = over(shown, ".frame-numbers span").items()
    assert number == pytest.approx(weights[0, 12].max().item(), abs=1.1e-5)
    assert shown.tab.locator(".frame-marker").is_visible()


def test_queries_that_were_not_recorded_say_so(opened):  # noqa: F811
    weights, recording = seeing(queries=[0, 9])
    shown = opened(page(recording, pictures=PICTURES, start={"layer": 0, "heads": [0], "text": 0, "token": 9})).ready()
    for (head, token), number in over(shown).items():
        assert number == pytest.approx(weights[head, 9, token].item(), abs=1.1e-5)
    shown.tab.locator('.toolbar [data-direction="in"]').click()
    assert set(over(shown)) == {(0, 9)}
    assert over(shown)[0, 9] == pytest.approx(weights[0, 9, 9].item(), abs=1.1e-5)
    class_token = float(shown.tab.locator('.beside button[data-token="0"]').get_attribute("data-weight"))
    assert class_token == pytest.approx(weights[0, 0, 9].item(), abs=1.1e-5)
    shown.tab.locator('.toolbar [data-direction="out"]').click()
    shown.tab.mouse.click(*middle(shown, 20))
    shown.tab.mouse.move(*middle(shown, 21))
    shown.tab.locator('.readout [data-key="21"]').wait_for()
    assert "not recorded" in shown.tab.locator(".pictureview .readout").inner_text()
    assert over(shown) == {}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_it_fits_every_window(opened, width, scheme):  # noqa: F811
    for recording, pictures in ((seeing()[1], PICTURES), (crossing(151)[1], {"picture": Frames(0.02)})):
        layer = recording.layers[-1].index
        shown = opened(
            page(recording, pictures=pictures, start={"layer": layer, "heads": [0]}), width=width, scheme=scheme
        )
        shown.ready()
        assert shown.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        board = shown.tab.locator(".picture, .sound").bounding_box()
        assert board["width"] >= (500 if width == 1280 else 300)
        assert board["x"] + board["width"] <= width


def test_the_colours_of_the_picture_come_back(opened):  # noqa: F811
    shown = opened(page(seeing()[1], pictures=PICTURES)).ready()
    grey = shown.tab.get_by_role("button", name="grey picture")
    filters = "getComputedStyle(document.querySelector('.picture img')).filter"
    assert "grayscale(1)" in shown.tab.evaluate(filters)
    grey.click()
    assert (grey.get_attribute("aria-pressed"), shown.tab.evaluate(filters)) == ("false", "none")


def test_a_served_picture(chromium):  # noqa: F811
    weights, recording = seeing()
    with serving(recording, pictures=PICTURES) as url:
        tab = chromium.new_page()
        complaints = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(f"{url}#layer=0&heads=1&text=0&token=17")
        tab.evaluate("multihead.ready")
        tab.locator(".patch-numbers span").first.wait_for()
        for one in tab.locator(".patch-numbers span").all():
            token = int(one.get_attribute("data-token"))
            assert float(one.get_attribute("data-weight")) == pytest.approx(weights[1, 17, token].item(), abs=1e-5)
        assert tab.evaluate("document.querySelector('.picture img').naturalWidth") == 70
        assert complaints == []
        tab.close()
