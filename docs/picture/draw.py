"""Draws the pictures of this folder: the page at each depth, light and dark. ``python docs/picture/draw.py``."""

import io
import shutil
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from PIL import Image
from playwright.sync_api import sync_playwright

from multihead.text import load_model, read
from multihead.view.comparison import write_comparison
from multihead.view.page import write_page

HERE = Path(__file__).parent
SENTENCES = ("The bank of the river was muddy after the rain.", "The bank of the city was closed after the rain.")
SHOTS = {
    "heads": ("long", "view=text&layer=2&heads=1&token=60&sort=-entropy", 900),
    "lines": ("short", "view=lines&layer=2&heads=1-3-9&token=18", 800),
    "text": ("long", "view=text&layer=4&heads=9-2&token=120", 800),
    "map": ("long", "view=map&layer=2&heads=0-1&token=255&key=250&scale=log", 900),
    "pair": ("long", "view=map&layer=2&heads=0&token=255&key=250&scale=linear&at=250,255,24", 900),
    "compared": ("pair", "view=map&layer=2&heads=3-5&token=5&key=2", 900),
}
"""For each picture its page, what is chosen, and the window's height."""


def pages(folder: Path) -> dict[str, Path]:
    """The pages that are drawn."""
    model = load_model(None)
    found = {name: folder / f"{name}.html" for name in ("short", "long", "pair")}
    write_page(read("It is in this spirit that a majority of American governments have passed new laws since 2009 "
                    "making the registration or voting process more difficult.", model), found["short"])  # fmt: skip
    write_page(read(topics["naming"], model, truncate=True), found["long"])
    write_comparison(*(read(sentence, model) for sentence in SENTENCES), found["pair"], names=("river", "city"))
    return found


def main() -> None:
    """Draw all of them, in both themes."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        made = pages(Path(folder))
        for name, (page, chosen, height) in SHOTS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": 1280, "height": height}, color_scheme=scheme, offline=True
                )
                tab = context.new_page()
                tab.goto(f"{made[page].as_uri()}#{chosen}")
                tab.evaluate("multihead.ready")
                tab.wait_for_timeout(1500)
                picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
                picture.save(HERE / f"{name}-{scheme}.webp", quality=88, method=6)
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
