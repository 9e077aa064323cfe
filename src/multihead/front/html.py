"""What every page is made of: its document as a part of HTML, and the viewer's files."""

import html
import json
from collections.abc import Mapping
from importlib import resources


def json_in_html(value: object) -> str:
    r"""JSON that may stand in a script element: no token can end it, and NaN and inf are refused.

    >>> print(json_in_html(["</script>"]))
    ["\u003c/script\u003e"]
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def title_in_html(document: Mapping[str, object]) -> str:
    """A document's title as the text of an element."""
    # a lone surrogate cannot be written as UTF-8; in the document it is an escape
    return html.escape(str(document["title"]).encode("utf-8", "replace").decode("utf-8"))


def bundle() -> tuple[str, str]:
    """The viewer's script and style.

    Raises:
        FileNotFoundError: this installation has none.
    """
    return static("multihead.js"), static("multihead.css")


def static(name: str) -> str:
    """One of the viewer's files.

    Raises:
        FileNotFoundError: this installation lacks it.
    """
    file = resources.files("multihead").joinpath("view", "static", name)
    if not file.is_file():
        raise FileNotFoundError(
            f"the viewer's {name} is missing from this installation: "
            "in a checkout run `npm ci && npm run build` in viewer/."
        )
    text = file.read_text(encoding="utf-8")
    element = "style" if name.endswith(".css") else "script"
    if f"</{element}" in text.lower():
        raise RuntimeError(f"{name} holds </{element}, which would end its element in the page.")
    return text
