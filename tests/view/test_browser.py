"""The page in a real Chromium, its network blocked: what stands on the screen is what the formula says."""

import math
import os
import shutil

import pytest
import torch

from multihead import masks
from multihead.recording import Recording
from multihead.view.page import page
from tests.view.made import layer_of, made_call, recording_of, true_weights

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def chromium():
    executable = next((path for path in map(shutil.which, EXECUTABLES) if path), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium or Chrome on the path: the page cannot be tested")
        pytest.skip("no Chromium or Chrome on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


def until(tab, expression: str) -> None:
    """Wait for it; the page's policy lets no text be evaluated again and again inside it."""
    for _ in range(600):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


class Opened:
    """A page that is open, and everything that went wrong in it."""

    def __init__(self, browser, path, *, scheme: str = "light", width: int = 1280, height: int = 800) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.tab = self.context.new_page()
        self.complaints, self.requests = [], []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        self.url = path.as_uri()

    def ready(self) -> "Opened":
        self.tab.evaluate("multihead.ready")
        return self

    def row(self, layer: int, head: int, query: int) -> torch.Tensor:
        return torch.tensor(self.tab.evaluate(f"[...multihead.row({layer}, {head}, {query})]"), dtype=torch.float64)

    def column(self, layer: int, head: int, key: int) -> torch.Tensor:
        found = self.tab.evaluate(f"[...multihead.column({layer}, {head}, {key})].map(x => Number.isNaN(x) ? null : x)")
        return torch.tensor([math.nan if x is None else x for x in found], dtype=torch.float64)

    @property
    def state(self) -> dict:
        return self.tab.evaluate("multihead.state")

    def shown(self, direction: str, head: int) -> dict[int, float]:
        """The numbers in the panel: token to weight."""
        entries = self.tab.locator(
            f'.panel .part[data-direction="{direction}"] .list[data-head="{head}"] li[data-token]'
        )
        return {
            int(entry.get_attribute("data-token")): float(entry.get_attribute("data-weight")) for entry in entries.all()
        }


@pytest.fixture
def opened(chromium, tmp_path):
    """Open recordings; afterwards nothing may have asked for the network or complained."""
    pages = []

    def open_it(recording: Recording | str, **options) -> Opened:
        path = tmp_path / f"page{len(pages)}.html"
        text, start = recording, options.pop("start", None)
        if isinstance(recording, Recording):
            text = page(recording, start=start)
        path.write_text(text, encoding="utf-8")
        pages.append(Opened(chromium, path, **options))
        return pages[-1]

    yield open_it
    for one in pages:
        # the map's worker comes from the page itself
        assert [url for url in one.requests if not url.startswith("blob:")] == [one.url]
        assert one.complaints == []
        one.context.close()


def test_every_row_and_column_is_the_formulas(opened):
    calls = [
        made_call(queries=11, keys=11, spread=2.0, seed=1, mask=masks.causal()),
        made_call(queries=11, keys=11, seed=2, softcap=1.5, sinks=torch.tensor([0.3, -1.0, 2.0])),
        made_call(
            queries=11,
            keys=11,
            heads=6,
            kv_heads=2,
            seed=3,
            mask=~masks.sliding_window(3),
            bias=torch.randn(1, 6, 11, 11),
        ),
    ]
    shown = opened(recording_of(*(layer_of(call, index=place) for place, call in enumerate(calls)))).ready()
    for place, call in enumerate(calls):
        weights = torch.from_numpy(true_weights(call))
        for head in range(call.sizes.heads):
            for token in (0, 5, 10):
                torch.testing.assert_close(shown.row(place, head, token), weights[head, token], atol=1e-5, rtol=0)
                torch.testing.assert_close(shown.column(place, head, token), weights[head, :, token], atol=1e-5, rtol=0)


def test_the_comparison_would_notice_swapped_heads(opened):
    call = made_call(queries=11, keys=11)
    shown = opened(recording_of(layer_of(call))).ready()
    weights = torch.from_numpy(true_weights(call))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(shown.row(0, 0, 5), weights[1, 5], atol=1e-5, rtol=0)


def test_numbers_on_screen_by_mouse(opened):
    call = made_call(queries=11, keys=11, spread=2.0)
    weights = true_weights(call)
    shown = opened(recording_of(layer_of(call)), start={"layer": 0, "heads": [1], "text": 0, "token": 4}).ready()
    for direction, head, expected in (("out", 1, weights[1, 4]), ("in", 1, weights[1, :, 4])):
        numbers = shown.shown(direction, head)
        assert len(numbers) >= 3
        for token, weight in numbers.items():
            assert weight == pytest.approx(expected[token], abs=1.1e-5)
        assert max(numbers, key=numbers.get) == expected.argmax()

    shown.tab.locator('.column.query .token[data-token="7"]').click()
    assert (shown.state["token"], shown.state["heads"]) == (7, [1])
    assert shown.shown("out", 1)[int(weights[1, 7].argmax())] == pytest.approx(weights[1, 7].max(), abs=1.1e-5)
    shown.tab.locator('.column.query .token[data-token="2"]').hover()
    until(shown.tab, "multihead.state.hover?.token === 2")
    drawn = shown.tab.locator('.column.key [data-head="1"][data-weight]')
    assert drawn.count() >= 1
    largest = max(float(number.get_attribute("data-weight")) for number in drawn.all())
    assert largest == pytest.approx(weights[1, 2].max(), abs=1.1e-5)

    shown.tab.locator('.overview [role="gridcell"][data-layer="0"][data-head="2"]').click()
    assert shown.state["heads"] == [2]


def test_keys_choose_layer_head_and_token(opened):
    calls = [made_call(queries=11, keys=11, seed=seed) for seed in (1, 2)]
    shown = opened(
        recording_of(*(layer_of(call, index=i) for i, call in enumerate(calls))),
        start={"layer": 0, "heads": [0], "token": 3},
    ).ready()
    press = shown.tab.keyboard.press
    press("ArrowRight")
    assert shown.state["token"] == 4
    press("j")
    assert shown.state["layer"] == 1
    press("l")
    assert shown.state["heads"] == [1]
    press("a")
    assert shown.state["heads"] == [0, 1, 2]
    press("End")
    assert shown.state["token"] == 10
    press("/")
    shown.tab.keyboard.type("text6")
    press("Enter")
    assert shown.state["token"] == 6
    press("Escape")
    press("?")
    assert shown.tab.get_by_role("dialog").is_visible()


def test_cross_attention_has_two_texts(opened):
    call = made_call(queries=7, keys=13)
    layer = layer_of(call, query_text="target", key_text="source")
    texts = {"target": [[f"t{place}" for place in range(7)]], "source": [[f"s{place}" for place in range(13)]]}
    shown = opened(recording_of(layer, texts=texts), start={"layer": 0, "heads": [0], "text": 0, "token": 3}).ready()
    assert shown.tab.locator('.column.query .token[data-token="6"]').inner_text().startswith("t6")
    assert shown.tab.locator('.column.key .token[data-token="12"]').inner_text().startswith("s12")
    torch.testing.assert_close(shown.row(0, 0, 3), torch.from_numpy(true_weights(call))[0, 3], atol=1e-5, rtol=0)


def test_chosen_heads_and_queries_keep_their_numbers(opened):
    call = made_call(queries=11, keys=11)
    shown = opened(recording_of(layer_of(call, index=4, heads=[2, 0], queries=[1, 9]))).ready()
    weights = torch.from_numpy(true_weights(call))
    torch.testing.assert_close(shown.row(4, 2, 9), weights[2, 9], atol=1e-5, rtol=0)
    column = shown.column(4, 0, 5)
    torch.testing.assert_close(column[[1, 9]], weights[0, [1, 9], 5], atol=1e-5, rtol=0)
    assert column.isnan().sum() == 9


EVIL = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'`${alert(3)}",
    "&lt;b&gt;",
    "\x00\x07\x1b[31m",
    "\u202eevil\u202c",
    "שלום",
    "👩‍👩‍👧",
    "\u2028\u2029",
    " ",
    "]]>-->",
]


def test_tokens_are_data(opened):
    call = made_call(queries=11, keys=11)
    shown = opened(
        recording_of(layer_of(call), texts={"text": [EVIL]}), start={"layer": 0, "heads": [0], "token": 1}
    ).ready()
    assert shown.tab.evaluate("multihead.document.texts[0].tokens") == EVIL
    assert shown.tab.locator("img, iframe, object, embed, link").count() == 0
    assert (
        shown.tab.locator('.column.query .token[data-token="1"]')
        .inner_text()
        .startswith("<img src=x onerror=alert(2)>")
    )
    for token in range(11):
        shown.tab.keyboard.press("Home")
        for _ in range(token):
            shown.tab.keyboard.press("ArrowRight")
    width = shown.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert width <= 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('"version":2', '"version":3'), "version"),
        (('"format":"multihead-page"', '"format":"other"'), "not a multihead page"),
        (('id="multihead-data" data-coding="sevens">', 'id="multihead-data" data-coding="sevens">AAAA'), "data"),
    ],
    ids=["version", "format", "data"],
)
def test_a_broken_page_says_so(opened, change, sentence):
    text = page(recording_of(layer_of(made_call(queries=11, keys=11))))
    assert text.count(change[0]) == 1
    shown = opened(text.replace(*change))
    complaint = shown.tab.locator(".complaint[role=alert]")
    complaint.wait_for()
    assert sentence in complaint.inner_text()


def test_dark_and_narrow(opened):
    recording = recording_of(layer_of(made_call(queries=11, keys=11)))
    light = opened(recording).ready()
    dark = opened(recording, scheme="dark", width=390, height=844).ready()
    colours = [one.tab.evaluate("getComputedStyle(document.body).backgroundColor") for one in (light, dark)]
    assert colours[0] != colours[1]
    assert dark.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_long_texts_stay_usable(opened):
    call = made_call(queries=1499, keys=1499, heads=2, dim=7)
    shown = opened(recording_of(layer_of(call)), start={"layer": 0, "heads": [0], "token": 700}).ready()
    weights = torch.from_numpy(true_weights(call))
    torch.testing.assert_close(shown.row(0, 1, 1498), weights[1, 1498], atol=1e-5, rtol=0)
    shown.tab.keyboard.press("End")
    shown.tab.locator('.flow .token[data-token="1498"]').wait_for()
    assert shown.state["token"] == 1498
    shown.tab.keyboard.press("v")
    shown.tab.locator(".map-stage").wait_for()
    shown.tab.keyboard.press("v")
    shown.tab.locator('.column.query .token[data-token="1498"]').wait_for()
    assert shown.tab.locator(".column.query .token").count() < 400, "every token in the document at once"


@pytest.mark.demo
def test_the_first_thing_a_newcomer_sees(opened):
    """Different heads, different relations, in the sentence of Figure 3; beside transformers' own eager path."""
    from transformers import AutoModel

    from multihead.text import DEFAULT_SENTENCE, DEFAULT_TOKEN, load_model, read
    from multihead.view.opening import start

    model = load_model(None)
    recording = read(DEFAULT_SENTENCE, model)
    shown = opened(recording, start=start(recording, DEFAULT_TOKEN)).ready()
    assert shown.state["token"] == 18
    opening = shown.tab.locator("#multihead").inner_text()
    for word in ("making", "difficult", "2009", "0.48", "1.00"):
        assert word in opening

    eager = AutoModel.from_pretrained(model.tokenizer.name_or_path, attn_implementation="eager").eval()
    with torch.no_grad():
        attentions = eager(**model.tokenizer(DEFAULT_SENTENCE, return_tensors="pt"), output_attentions=True).attentions
    for layer, head, key, weight in ((2, 1, 25, 0.46), (5, 9, 25, 0.48), (0, 2, 17, 1.00)):
        row = shown.row(layer, head, 18)
        torch.testing.assert_close(row, attentions[layer][0, head, 18].double(), atol=1e-5, rtol=0)
        assert row[key] == pytest.approx(weight, abs=0.005)
        chip = shown.tab.locator(f'.relations .chip[data-layer="{layer}"][data-head="{head}"][data-token="{key}"]')
        assert float(chip.get_attribute("data-weight")) == pytest.approx(row[key].item(), abs=1e-6)
