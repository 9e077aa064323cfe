"""The page for everybody: axe-core's rules, keyboard, narrow windows, large type, system colours, little motion."""

import os
from pathlib import Path

import numpy as np
import pytest

from multihead.view.page import page
from multihead.view.pictures import Frames, Picture
from tests.view import test_browser as browser
from tests.view.made import layer_of, made_call, recording_of

pytestmark = pytest.mark.browser

chromium = browser.chromium

AXE = Path(__file__).parents[2] / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
VIEWS = ("lines", "text", "map")
START = {"layer": 0, "heads": [0, 1, 2], "text": 0, "token": 5}
ENGLISH = [
    *("[CLS]", "it", "is", "in", "this", "spirit", "that", "american", "govern", "##ments", "have", "passed", "new"),
    *("laws", "since", "2009", "making", "voting", "more", "difficult", ".", "they", "say", ",", "(", "and", "[SEP]"),
]
UNRULY = ["x" * 120, "\u202eevil\u202c", "שלום", "https://example.org/" + "a/" * 60, " ", "\n", "中文"]
SMALLEST_TARGET = 24


def recording(tokens=ENGLISH, *, layers=2, **options):
    call = made_call(queries=len(tokens), keys=len(tokens), heads=4, spread=2.0, seed=3, **options)
    return recording_of(*(layer_of(call, index=place) for place in range(layers)), texts={"text": [tokens]})


def two_texts():
    layer = layer_of(made_call(queries=7, keys=13), query_text="target", key_text="source")
    texts = {"target": [[f"t{place}" for place in range(7)]], "source": [[f"s{place}" for place in range(13)]]}
    return recording_of(layer, texts=texts)


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.is_file():
        if os.environ.get("CI"):
            pytest.fail("axe-core is not installed: run npm ci in viewer/")
        pytest.skip("axe-core is not installed: run npm ci in viewer/")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture
def visit(chromium, tmp_path):
    """Open a recording's page in a tab that lets axe-core in, although the page's own policy would not."""
    contexts = []
    # what is half way between two colours has the contrast of neither
    still = {"reduced_motion": "reduce"}

    def open_it(shown, *, view="lines", width=1280, height=800, start=None, marks=False, **emulated):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, bypass_csp=True, offline=True, **(still | emulated)
        )
        contexts.append(context)
        tab = context.new_page()
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(shown if isinstance(shown, str) else page(shown, start=start or START), encoding="utf-8")
        tab.goto(f"{path.as_uri()}#view={view}{'&marks=1' if marks else ''}")
        return tab

    yield open_it
    for context in contexts:
        context.close()


def ready(tab, view: str | None = None):
    tab.evaluate("multihead.ready")
    if view == "map":
        tab.locator(".map-stage canvas").first.wait_for()
    return tab


def violations(tab, axe: str, *, without: tuple[str, ...] = ()) -> list[str]:
    """What axe-core finds wrong with the page as it is now."""
    if not tab.evaluate("'axe' in window"):
        tab.add_script_tag(content=axe)
    options = {"runOnly": RULES, "rules": {rule: {"enabled": False} for rule in without}}
    found = tab.evaluate("options => axe.run(document, options)", options)
    assert len(found["passes"]) > 10
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}" for one in found["violations"] for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(visit, axe, view, scheme):
    tab = ready(visit(recording(), view=view, color_scheme=scheme), view)
    assert violations(tab, axe) == []
    tab.set_viewport_size({"width": 360, "height": 800})
    tab.keyboard.press("m")
    assert tab.evaluate("multihead.state.marks")
    assert violations(tab, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_what_opens(visit, axe, scheme):
    tab = ready(visit(recording(), color_scheme=scheme))
    tab.keyboard.press("?")
    assert tab.get_by_role("dialog").is_visible()
    assert violations(tab, axe) == []
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    tab.keyboard.type("in")
    assert tab.locator("#multihead-matches li").count() > 1
    assert violations(tab, axe) == []
    tab.keyboard.press("Escape")
    tab.keyboard.press("Escape")
    assert tab.evaluate("multihead.state.token") is None
    assert violations(tab, axe) == []
    tab.keyboard.press("ArrowRight")
    for _ in range(4):
        tab.keyboard.press("a")
    assert violations(tab, axe) == []


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_with_two_texts_and_a_long_one(visit, axe, view):
    tab = ready(visit(two_texts(), view=view, start={"layer": 0, "heads": [0, 2], "text": 0, "token": 3}), view)
    assert violations(tab, axe) == []
    if view != "map":
        tab = ready(visit(recording(ENGLISH * 8, layers=1), view=view), view)
        tab.keyboard.press("End")
        assert violations(tab, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shown", ["picture", "frames"])
def test_axe_finds_nothing_on_a_picture(visit, axe, shown, scheme):
    tokens = ["[CLS]", *(f"r{place // 7}c{place % 7}" for place in range(42))]
    image = (np.random.default_rng(0).random((60, 70, 3)) * 255).astype(np.uint8)
    seen = Picture(image, (6, 7)) if shown == "picture" else Frames(0.02)
    text = page(recording(tokens, layers=1), start=START, pictures={"text": seen})
    tab = ready(visit(text, view="picture", color_scheme=scheme))
    assert tab.evaluate("multihead.state.view") == "picture"
    assert violations(tab, axe) == []
    tab.set_viewport_size({"width": 320, "height": 800})
    browser.until(tab, "document.documentElement.scrollWidth <= 320")
    assert violations(tab, axe) == []


def test_axe_finds_nothing_in_a_complaint(visit, axe):
    tab = visit(page(recording()).replace('"version":2', '"version":99'))
    tab.locator(".complaint").wait_for()
    assert violations(tab, axe) == []


def test_axe_would_notice(visit, axe):
    tab = ready(visit(recording()))
    tab.evaluate("document.querySelector('.search input').removeAttribute('aria-label')")
    tab.evaluate("document.querySelector('.search input').removeAttribute('placeholder')")
    tab.evaluate("document.querySelector('.accuracy').style.color = '#bbb'")
    tab.add_style_tag(content=".panel li button { min-height: 0 !important; line-height: 8px; font-size: 8px; }")
    found = {one.split(":")[0] for one in violations(tab, axe)}
    assert {"label", "color-contrast", "target-size"} <= found


@pytest.mark.parametrize("view", VIEWS)
def test_narrow_windows_and_large_type_scroll_down_only(visit, view):
    """640 pixels are also what is left of 1280 at 200 % zoom."""
    tab = ready(visit(recording([*ENGLISH, *UNRULY]), view=view, height=640, marks=True), view)
    assert tab.evaluate("multihead.state.marks")
    for width in (640, 360, 320):
        tab.set_viewport_size({"width": width, "height": 640})
        for key in ("a", "m", "Home", "End"):
            tab.keyboard.press(key)
            browser.until(tab, f"document.documentElement.scrollWidth <= {width}")
        tab.keyboard.press("?")
        browser.until(tab, f"document.documentElement.scrollWidth <= {width}")
        box = tab.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        tab.keyboard.press("Escape")


def test_every_control_is_large_enough_to_touch(visit):
    tab = ready(visit(recording(), width=360, has_touch=True))
    for view in VIEWS:
        tab.locator(f'.toolbar [data-view="{view}"]').click()
        small = tab.evaluate(
            """least => [...document.querySelectorAll("button, select, input, summary, .cell, .column .token")]
                .filter((one) => one.checkVisibility())
                .map((one) => [one.outerHTML.slice(0, 120), one.getBoundingClientRect()])
                .filter(([, box]) => box.width < least - 0.01 || box.height < least - 0.01)
                .map(([html, box]) => `${html} ${box.width} x ${box.height}`)""",
            SMALLEST_TARGET,
        )
        assert small == []


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_is_reached_and_shows_it(visit, view):
    """By Tab alone; each has a ring of two pixels that is not cut off."""
    tab = ready(visit(recording(), view=view), view)
    controls = tab.evaluate(
        """() => [...document.querySelectorAll("button, select, input, summary, [tabindex='0']")]
            .filter((one) => one.checkVisibility() && one.tabIndex >= 0).length"""
    )
    assert controls > 20
    tab.evaluate("window.reached = new Set()")
    for _ in range(controls + 5):
        tab.keyboard.press("Tab")
        fault = tab.evaluate(
            """() => {
                const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
                if (one === document.body) return null;
                reached.add(one);
                const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                if (!ring) return `no ring: ${one.outerHTML.slice(0, 120)}`;
                const out = parseFloat(style.outlineOffset) + parseFloat(style.outlineWidth);
                for (let up = one.parentElement; up !== document.body; up = up.parentElement) {
                    if (getComputedStyle(up).overflowX === "visible") continue;
                    const around = up.getBoundingClientRect();
                    const beyond = Math.max(around.left - box.left, box.right - around.right,
                        around.top - box.top, box.bottom - around.bottom) + out;
                    if (beyond > 1.5) return `${up.className} cuts ${beyond} of ${one.outerHTML.slice(0, 120)}`;
                }
                return null;
            }"""
        )
        assert fault is None
    assert tab.evaluate("reached.size") >= controls


def test_little_motion_where_little_is_asked_for(visit):
    moving = """() => [...document.querySelectorAll("*")].filter((one) => {
        const style = getComputedStyle(one);
        return style.transitionDuration.split(",").some((time) => parseFloat(time) > 0)
            || style.animationName !== "none" || style.scrollBehavior === "smooth";
    }).length"""
    assert ready(visit(recording(), reduced_motion="no-preference")).evaluate(moving) > 0
    tab = ready(visit(recording()))
    for view in VIEWS:
        tab.locator(f'.toolbar [data-view="{view}"]').click()
        assert ready(tab, view).evaluate(moving) == 0


@pytest.mark.parametrize("view", VIEWS)
def test_the_systems_own_colours_keep_what_is_chosen_visible(visit, axe, view):
    tab = ready(visit(recording(), view=view, forced_colors="active"), view)
    assert tab.evaluate("matchMedia('(forced-colors: active)').matches")
    pairs = [(f'[data-view="{view}"][aria-pressed="true"]', '.segmented [aria-pressed="false"]')]
    pairs.append(('.heads [aria-pressed="true"]', '.heads [aria-pressed="false"]'))
    if view == "text":
        pairs.append((".flow .focused", ".flow .token:not(.focused):not(.shaded)"))
    if view == "lines":
        pairs.append(('.column [aria-selected="true"] .token-text', '.column [aria-selected="false"] .token-text'))
    for chosen, other in pairs:
        grounds = [
            tab.evaluate(f"getComputedStyle(document.querySelector({one!r})).backgroundColor")
            for one in (chosen, other)
        ]
        assert grounds[0] != grounds[1]
    if view == "text":
        shaded = "getComputedStyle(document.querySelector('.flow .shaded:not(.focused)')).textDecorationLine"
        assert tab.evaluate(shaded) == "underline"
    # contrast is the system's own matter here, and axe reads the colours that it replaces
    assert violations(tab, axe, without=("color-contrast",)) == []
