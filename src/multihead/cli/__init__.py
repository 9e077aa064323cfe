"""The command line: ``multihead view`` opens a page, ``show`` answers in the terminal, ``estimate`` says what it costs.

Whatever needs torch is imported inside the commands, so that help and mistakes in the arguments are answered at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from multihead.cli.options import (
    File,
    Heads,
    Image,
    Layers,
    Model,
    Output,
    Save,
    Target,
    Text,
    Token,
    Truncate,
    numbers_of,
)
from multihead.cli.places import check_apart, check_writable, free_name
from multihead.cli.serving import Door, is_surely_too_large
from multihead.cli.source import Source
from multihead.cli.terminal import busy, plain_errors, show_file, writable_everywhere
from multihead.version import __version__

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

_VIEW_EXAMPLES = """\b
Examples:
  multihead view                                   the sentence of "Attention Is All You Need", Figure 3
  multihead view "The animal didn't cross the street because it was too tired." --token it
  multihead view --file letter.txt --output letter.html --no-open
  multihead view "Guten Morgen!" --model bert-base-multilingual-cased --layers 0,8-11
  multihead view --save run.safetensors            keep what was seen; then: multihead view run.safetensors
  multihead view run.safetensors --serve           what is shown is computed here: for long texts
  multihead view --image cat.jpg --model google/vit-base-patch16-224
"""
_SHOW_EXAMPLES = """\b
Examples:
  multihead show                                   the sentence of "Attention Is All You Need", Figure 3
  multihead show "The cat sat on the mat." --token cat
  multihead show --file letter.txt --token Paris --layers 2-4 --count 20
  echo "Words from a pipe." | multihead show
  multihead show run.safetensors --token 7         what was saved with --save, and the token at a position
"""

_COMPARE_EXAMPLES = """\b
Examples:
  multihead view "The bank of the river." --save river.safetensors --no-open
  multihead view "The bank of the city." --save city.safetensors --no-open
  multihead compare river.safetensors city.safetensors
"""
_FIGURE_EXAMPLES = """\b
Examples:
  multihead figure --output making.pdf                         what "making" looks at, the text shaded
  multihead figure run.safetensors --output heads.svg --kind heads
  multihead figure --file letter.txt --output map.png --kind map --layers 2 --heads 1,5
"""
_ESTIMATE_EXAMPLES = """\b
Examples:
  multihead estimate --length 512
  multihead estimate --length 100000 --model ./llama --no-qk
"""


@app.callback(epilog=_VIEW_EXAMPLES, invoke_without_command=True)
def multihead(version: Annotated[bool, typer.Option("--version", help="Say the version and stop.")] = False) -> None:
    """See which words each attention head of a model looks at."""
    if version:
        typer.echo(f"multihead {__version__}")
        raise typer.Exit


@app.command(epilog=_VIEW_EXAMPLES)
def view(
    text: Text = None,
    *,
    file: File = None,
    image: Image = None,
    model: Model = None,
    token: Token = None,
    layers: Layers = None,
    heads: Heads = None,
    target: Target = None,
    truncate: Truncate = False,
    output: Output = None,
    save: Save = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page and do not open it.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page to this machine's browser. Default: if it passes 64 MB.")
    ] = False,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Where to serve. Default: 127.0.0.1, this machine.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="At which port to serve. Default: a free one.")
    ] = None,
) -> None:
    """Write a page that shows every head over the text, and open it in the browser. The page needs no network.

    A page of more than 64 MB is served instead: what it shows is computed here when it is looked at.
    """
    with plain_errors():
        door = Door(host, port, opens=not no_open)
        serve = serve or door.is_named
        if serve and output is not None:
            raise ValueError("--output writes the page to a file, and --serve, --host and --port serve it: choose one.")
        path = free_name() if output is None else output
        if not serve:
            check_writable(path)
        source = Source(text, file, model, layers, heads, target, truncate=truncate, save=save, image=image)
        check_apart({"--output": path, "--save": save, "--file": file, "--image": image, "TEXT": source.saved})
        if source.saved is not None and output is None and (serve or is_surely_too_large(source.saved)):
            door.serve(source.saved, None if token is None else lambda recording: source.token(token, recording))
            return
        with busy() as say:
            recording = source.recording(say, maps=serve or save is not None)
            say("drawing the page")
            from multihead.view.opening import start
            from multihead.view.page import fits, write_page

            chosen = source.token(token, recording)
            fitting = fits(recording)
            # it looks through all heads, which of a recording too large for a page takes minutes
            opening = start(recording, chosen) if fitting else None
            source.keep(recording)
            serve = serve or (output is None and not fitting)
            if not serve:
                write_page(recording, path, start=opening, pictures=source.pictures)
        if serve:
            door.serve(recording, lambda _: chosen, source.pictures)
            return
        show_file(path, opens=not no_open)


@app.command(epilog=_SHOW_EXAMPLES)
def show(
    text: Text = None,
    *,
    file: File = None,
    model: Model = None,
    token: Token = None,
    layers: Layers = None,
    heads: Heads = None,
    target: Target = None,
    truncate: Truncate = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many links to list each way.")] = 8,
    every: Annotated[
        bool, typer.Option("--all", help="List links to and from special tokens and punctuation too.")
    ] = False,
    save: Save = None,
) -> None:
    """Say in the terminal what a token looks at, and what looks at it."""
    with plain_errors():
        source = Source(text, file, model, layers, heads, target, truncate=truncate, save=save)
        check_apart({"--save": save, "--file": file})
        with busy() as say:
            recording = source.recording(say)
        from rich.console import Console

        from multihead.view.opening import likely_token
        from multihead.view.terminal import summary

        chosen = source.token(token, recording)
        out = writable_everywhere(Console(highlight=False))
        chosen = likely_token(recording) if chosen is None else chosen
        told = summary(recording, chosen, count=count, marks=every, plain=out.options.ascii_only)
        source.keep(recording)
        out.print(told)


@app.command(epilog=_COMPARE_EXAMPLES)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A recording (*.safetensors).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    *,
    output: Output = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page and do not open it.")] = False,
) -> None:
    """Write a page with two recordings: their maps side by side, and the first less the second."""
    with plain_errors():
        path = free_name() if output is None else output
        check_writable(path)
        check_apart({"--output": path, "A": first})
        check_apart({"--output": path, "B": second})
        with busy() as say:
            say("opening the recordings")
            from multihead.recording import load
            from multihead.view.comparison import write_comparison

            pair = load(first), load(second)
            say("drawing the page")
            write_comparison(*pair, path, names=(first.stem, second.stem))
        show_file(path, opens=not no_open)


@app.command(epilog=_FIGURE_EXAMPLES)
def figure(
    text: Text = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A *.pdf, *.svg or *.png.")],
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="heads, map, text or links. Default: what fits.")
    ] = None,
    file: File = None,
    model: Model = None,
    token: Token = None,
    layer: Annotated[int | None, typer.Option("--layer", metavar="N", help="The layer to draw.")] = None,
    heads: Annotated[str | None, typer.Option("--heads", metavar="LIST", help="The heads to draw: 0,2-5.")] = None,
    target: Target = None,
    truncate: Truncate = False,
    dark: Annotated[bool, typer.Option("--dark", help="On a dark ground.")] = False,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Above the figure.")] = None,
) -> None:
    """Draw a figure for a paper: PDF, SVG or PNG, the same bytes each time."""
    with plain_errors():
        if output.suffix.lower() not in (".pdf", ".svg", ".png"):
            raise ValueError(f"{output} names no kind of figure: let it end in .pdf, .svg or .png.")
        check_writable(output)
        source = Source(text, file, model, None, None, target, truncate=truncate, save=None)
        check_apart({"--output": output, "--file": file, "TEXT": source.saved})
        chosen = None if heads is None else numbers_of("--heads", heads)
        with busy() as say:
            recording = source.recording(say)
            say("drawing the figure")
            from multihead.view.figures import figure as draw

            named = source.token(token, recording)
            drawn = draw(recording, kind, layer=layer, heads=chosen, token=named, dark=dark, title=title)
            drawn.savefig(output)
        for note in drawn.notes:
            typer.echo(f"multihead: {note}", err=True)
        typer.echo(str(output))


@app.command(epilog=_ESTIMATE_EXAMPLES)
def estimate(
    length: Annotated[int, typer.Option("--length", metavar="TOKENS", min=1, help="Tokens of the text.")],
    *,
    model: Model = None,
    batch: Annotated[int, typer.Option("--batch", metavar="TEXTS", min=1, help="Texts at once.")] = 1,
    no_qk: Annotated[bool, typer.Option("--no-qk", help="Keep no queries and keys: statistics only.")] = False,
) -> None:
    """Say what seeing a text of some length through a model will cost: operations, seconds, bytes."""
    with plain_errors():
        with busy() as say:
            say("loading torch and transformers")
            from multihead.lens import estimate as cost_of
            from multihead.text import load_model

            say("opening the model")
            opened = load_model(model)
            say("measuring a small run")
            cost = cost_of(opened.model, length=length, batch=batch, qk=not no_qk)
        typer.echo(str(cost))


def main() -> None:
    """The ``multihead`` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
