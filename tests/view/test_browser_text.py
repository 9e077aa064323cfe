"""Tokens as people read them, and the text view, in a real Chromium."""

import pytest
import torch

from tests.view import test_browser as browser
from tests.view.made import layer_of, made_call, recording_of, true_weights

pytestmark = pytest.mark.browser

chromium, opened, until = browser.chromium, browser.opened, browser.until

LENGTH = 131_072
"""Tokens of the long text; only a few of its queries are recorded."""


def spelled(text: str) -> str:
    """Text in the alphabet of byte-level tokenizers, by its definition in GPT-2's encoder.py."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in kept}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(kept)))
    return "".join(letters[byte] for byte in text.encode())


def shown(opened, tokens, *, view="text", heads=(0, 1), **options):
    call = made_call(queries=len(tokens), keys=len(tokens), spread=2.0, seed=5)
    start = {"layer": 0, "heads": list(heads), "text": 0, "token": 1}
    page = opened(recording_of(layer_of(call), texts={"text": [tokens]}), start=start, **options).ready()
    if page.state["view"] != view:
        page.tab.locator(f'.toolbar [data-view="{view}"]').click()
    return page


def flowing(page) -> str:
    return page.tab.locator(".flow").inner_text()


CODE = [spelled(piece) for piece in ("def", " f", "(", "é", "):", "\n", "   ", " return", " 你", "好")]
PIECES = ["[CLS]", "govern", "##ments", "didn", "'", "t", "(", "say", ")", ".", "[SEP]"]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (PIECES, "[CLS] governments didn't (say). [SEP]"),
        (CODE, "def f(é):↵\n␣␣␣ return 你好"),
        (["Le", "Ġcafé", "\n", "<F0 9F>", "<98 80>", "Ġest", "Ġlà"], "Le café↵\n⟨F0 9F⟩⟨98 80⟩ est là"),
        (["▁The", "▁cat", "s", "<0x0A>", "▁▁", "x"], "The cats↵\n␣␣x"),
        (["Ġorġ", "u", "il-", "qattus", "jiekol"], "Ġorġ u il- qattus jiekol"),
        (["我", "爱", "你", "。"], "我爱你。"),
    ],
    ids=["wordpiece", "bytes", "half bytes", "sentencepiece", "maltese", "chinese"],
)
def test_text_reads_as_text(opened, tokens, text):
    page = shown(opened, tokens)
    assert flowing(page) == text
    page.tab.keyboard.press("m")
    assert page.state["marks"] is True
    assert page.tab.locator('.toolbar [data-marks][aria-pressed="true"]').count() == 1
    raw = page.tab.locator(".flow .token").all_inner_texts()
    assert raw == [token.replace("\n", "↵") for token in tokens]
    page.tab.wait_for_function("() => location.hash.includes('marks=1')")
    page.tab.locator(".toolbar [data-marks]").click()
    assert flowing(page) == text


def test_marks_are_hidden_and_shown_wherever_a_token_stands(opened):
    page = shown(opened, ["Ġmaking", "Ġmore", "Ġlaws", spelled(" été"), "s"], view="lines", heads=(0,))
    places = [
        '.column.query [data-token="3"] .token-text',
        '.column.key [data-token="3"] .token-text',
        ".panel h2 .token-text",
    ]
    page.tab.keyboard.press("End")
    page.tab.keyboard.press("ArrowLeft")
    whole = page.tab.locator("#multihead").inner_text()
    assert [page.tab.locator(place).inner_text() for place in places] == ["été"] * 3
    assert "Ġ" not in whole
    assert "Ã" not in whole
    page.tab.keyboard.press("m")
    assert [page.tab.locator(place).inner_text() for place in places] == [spelled(" été")] * 3
    assert "Ġ" in page.tab.locator(".lede").inner_text()
    assert "Ġ" in page.tab.locator(".relations").inner_text()
    page.tab.keyboard.press("m")
    page.tab.keyboard.press("/")
    page.tab.keyboard.type("été")
    assert page.tab.locator('#multihead-matches [role="option"]').all_inner_texts() == ["été\n3"]


def test_nothing_reaches_out_of_its_place(opened):
    """Overrides, marks without a letter, piles of marks: each token keeps its place and its order on the line."""
    tokens = ["first", "\u202ereversed", "\u2067shut", "\u0301", "Z" + "\u0335" * 40, "שלום", "\u200b", "last"]
    page = shown(opened, tokens, width=1600)
    assert flowing(page).split()[:3] == ["first", "‹202E›reversed", "‹2067›shut"]
    boxes = [span.bounding_box() for span in page.tab.locator(".flow .token").all()]
    assert all(box["width"] > 3 for box in boxes)
    where = [(round(box["y"] / 20), box["x"]) for box in boxes]
    assert where == sorted(where)
    line = page.tab.evaluate("parseFloat(getComputedStyle(document.querySelector('.flow')).lineHeight)")
    assert page.tab.locator('.flow .token[data-token="3"]').inner_text() == "◌\u0301"
    assert boxes[0]["height"] < line
    assert (
        page.tab.evaluate("getComputedStyle(document.querySelector('.flow .token').parentElement).unicodeBidi")
        == "isolate"
    )


def test_a_text_from_right_to_left_runs_so_and_its_letters_join(opened):
    arabic = ["[CLS]", "الان", "##تباه", "ك", "##ل", "،", "Attention", "Need", "2017", "[SEP]"]
    page = shown(opened, arabic)
    assert page.tab.locator(".flow").get_attribute("dir") == "rtl"
    box = {place: span.bounding_box() for place, span in enumerate(page.tab.locator(".flow .token").all())}
    assert box[0]["x"] > box[1]["x"] > box[2]["x"] > box[3]["x"] > box[4]["x"]
    assert box[6]["x"] < box[7]["x"], "two English words keep their own order"
    # kaf before lam has another shape, so a joined pair is narrower than the two alone
    page.tab.add_style_tag(content=".flow .token { unicode-bidi: isolate; padding: 0 1px; }")
    apart = page.tab.locator('.flow .token[data-token="3"]').bounding_box()["width"] - 2
    assert apart > box[3]["width"] + 1
    english = shown(opened, ["[CLS]", "hello", "שלום", "you", "[SEP]"])
    assert english.tab.locator(".flow").get_attribute("dir") == "ltr"


def test_shades_are_the_formulas(opened):
    page = shown(opened, [f"t{place}" for place in range(23)])
    weights = true_weights(made_call(queries=23, keys=23, spread=2.0, seed=5))
    for token, direction in ((7, "out"), (7, "in")):
        page.tab.locator(f'.flow .token[data-token="{token}"]').click()
        page.tab.locator(f'.toolbar [data-direction="{direction}"]').click()
        page.tab.mouse.move(0, 0)
        until(page.tab, "multihead.state.hover === null")
        expected = weights[:2, token].max(0) if direction == "out" else weights[:2, :, token].max(0)
        drawn = {
            int(span.get_attribute("data-token")): float(span.get_attribute("data-weight"))
            for span in page.tab.locator(".flow .token[data-weight]").all()
        }
        assert set(drawn) == {place for place in range(23) if expected[place] >= 0.01}
        assert drawn == pytest.approx({place: expected[place] for place in drawn}, abs=1.1e-5)
        assert page.tab.locator('.flow .token[aria-selected="true"]').get_attribute("data-token") == str(token)


def test_nothing_is_painted_before_the_numbers_are_there(opened):
    page = shown(opened, [f"t{place}" for place in range(23)], heads=(0,))
    tab = page.tab
    tab.evaluate(
        """() => {
            multihead.waiting = [];
            multihead.store.spreads.clear();
            multihead.store.remote = {
                spread: (layer, head, focus, empty, done) => { multihead.waiting.push({empty, done}); },
                partners: () => () => {},
            };
            multihead.store.update({ token: 9 });
        }"""
    )
    assert tab.locator('.flow .focused[data-token="9"]').count() == 1
    assert tab.locator(".flow .shaded").count() == 0
    assert tab.locator(".textview").get_attribute("aria-busy") == "true"
    tab.evaluate(
        """() => {
            const weights = Float64Array.from({length: 23}, (_, i) => i === 4 ? 0.75 : 0);
            for (const {empty, done} of multihead.waiting) done({...empty, pending: false, weights});
            multihead.store.update({ arrived: 1 });
        }"""
    )
    assert tab.locator(".flow .shaded").get_attribute("data-token") == "4"
    assert tab.locator(".textview").get_attribute("aria-busy") is None


@pytest.fixture(scope="module")
def long_recording():
    queries = [5, 70_001, 131_070]
    call = made_call(queries=LENGTH, keys=LENGTH, heads=2, dim=3, spread=3.0, seed=2)
    tokens = [("Ġ" if place % 3 else "") + f"w{place % 977}" for place in range(LENGTH)]
    return recording_of(layer_of(call, queries=queries), texts={"text": [tokens]}), queries


def test_a_long_text_keeps_only_what_is_in_sight(opened, long_recording):
    recording, queries = long_recording
    page = opened(recording, start={"layer": 0, "heads": [0, 1], "text": 0, "token": queries[1]}).ready()
    tab = page.tab
    chosen = tab.locator(f'.flow .token[data-token="{queries[1]}"]')
    in_window = """(token) => {
        const box = document.querySelector(`.flow .token[data-token="${token}"]`)?.getBoundingClientRect();
        const window = document.querySelector(".scroller").getBoundingClientRect();
        return !!box && box.top >= window.top && box.bottom <= window.bottom;
    }"""
    tab.wait_for_function(in_window, arg=queries[1])
    assert chosen.get_attribute("aria-setsize") == str(LENGTH)
    assert tab.locator(".flow").get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    assert tab.locator(".flow .token").count() < 6000
    for key, token in (("End", LENGTH - 1), ("Home", 0), ("ArrowRight", 1)):
        tab.keyboard.press(key)
        assert page.state["token"] == token
        tab.wait_for_function(in_window, arg=token)
    # by wheel: what comes into sight is made, what leaves it goes, and the text does not jump meanwhile
    tab.locator(".scroller").hover()
    tops = []
    for _ in range(12):
        tab.mouse.wheel(0, 900)
        tab.wait_for_timeout(60)
        tops.append(tab.evaluate("document.querySelector('.scroller').scrollTop"))
    assert tops == sorted(tops)
    assert tops[-1] > 5000
    tab.wait_for_function("() => document.querySelectorAll('.flow .token').length > 400")
    assert tab.locator(".flow .token").count() < 6000
    assert tab.locator('.flow .token[data-token="0"]').count() == 0
    assert tab.locator(".flow").get_attribute("aria-activedescendant") is None


def test_beside_a_long_text_the_weight_is_seen_and_reached(opened, long_recording):
    recording, queries = long_recording
    page = opened(recording, start={"layer": 0, "heads": [0], "text": 0, "token": queries[2]}).ready()
    tab = page.tab
    row = page.row(0, 0, queries[2])
    strongest = int(row.argmax())
    tab.locator(".whereabouts").wait_for()
    box = tab.locator(".whereabouts").bounding_box()
    pixels = torch.tensor(
        tab.evaluate(
            """() => { const canvas = document.querySelector(".whereabouts"), y = canvas.height;
                return [...canvas.getContext("2d").getImageData(canvas.width / 2, 0, 1, y).data]; }"""
        )
    ).reshape(-1, 4)
    blue = (pixels[:, 2] - pixels[:, 0]).argmax().item()
    assert blue == pytest.approx(strongest / LENGTH * len(pixels), abs=3), "the strongest row has the head's colour"
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + strongest / LENGTH * box["height"])
    tab.locator(f'.flow .token[data-token="{strongest}"]').wait_for()
    assert tab.locator(f'.flow .token[data-token="{strongest}"]').is_visible()
    assert page.state["token"] == queries[2], "a click goes there and chooses nothing"


def test_a_long_text_is_shaded_at_once(opened, long_recording):
    """All that a change sets off in the page, at 131,072 tokens, but for computing the weights anew."""
    recording, queries = long_recording
    page = opened(recording, start={"layer": 0, "heads": [0, 1], "text": 0, "token": queries[0]}).ready()
    page.tab.evaluate("multihead.row(0, 0, 5)")
    took = page.tab.evaluate(
        """([a, b]) => { const times = [];
            for (let turn = 0; turn < 12; turn++) {
                multihead.store.update({ token: turn % 2 ? a : b, hover: null });
                const before = performance.now();
                multihead.store.update({ arrived: turn + 1 });
                times.push(performance.now() - before);
            }
            return Math.min(...times); }""",
        queries[:2],
    )
    assert took < 50, f"{took:.1f} ms, with every other view of the page"
