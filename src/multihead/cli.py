"""The command line: ``multihead view`` opens a page, ``show`` answers in the terminal, ``estimate`` says what it costs.

Whatever needs torch is imported inside the commands, so that help and mistakes in the arguments are answered at once.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multihead.errors import MultiheadError
from multihead.files import place_of
from multihead.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from multihead.recording import Recording

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

_VIEW_EXAMPLES = """\b
Examples:
  multihead view                                   the sentence of "Attention Is All You Need", Figure 3
  multihead view "The animal didn't cross the street because it was too tired." --token it
  multihead view --file letter.txt --output letter.html --no-open
  multihead view "Guten Morgen!" --model bert-base-multilingual-cased --layers 0,8-11
  multihead view --save run.safetensors            keep what was seen; then: multihead view run.safetensors
"""
_SHOW_EXAMPLES = """\b
Examples:
  multihead show                                   the sentence of "Attention Is All You Need", Figure 3
  multihead show "The cat sat on the mat." --token cat
  multihead show --file letter.txt --token Paris --layers 2-4 --count 20
  echo "Words from a pipe." | multihead show
  multihead show run.safetensors --token 7         what was saved with --save, and the token at a position
"""

_ESTIMATE_EXAMPLES = """\b
Examples:
  multihead estimate --length 512
  multihead estimate --length 100000 --model ./llama --no-qk
"""

Text = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT",
        help="The text to read, - for standard input, or a recording saved with --save (*.safetensors). "
        "Default: a sentence that is known well.",
        show_default=False,
    ),
]
File = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Read the text from a file (UTF-8).")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A folder or a hub name. Default: the packaged demo model, offline."),
]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="LIST", help="Layers to record, from 0: 0,2-5. Default: all.")
]
Heads = Annotated[
    str | None,
    typer.Option("--heads", metavar="LIST", help="Heads to record: 0,2-5 in every layer, or 2:1,5:9. Default: all."),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="The token to begin with or its position. Default: the longest word."
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="TEXT", help="What a decoder reads. Default: what the model itself writes."),
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut off a text that is longer than the model takes.")]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Save what was seen as a recording (*.safetensors).")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where to write the page. Default: attention.html here, or attention-2.html, ... if it is taken.",
    ),
]


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
    model: Model = None,
    token: Token = None,
    layers: Layers = None,
    heads: Heads = None,
    target: Target = None,
    truncate: Truncate = False,
    output: Output = None,
    save: Save = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page and do not open it.")] = False,
) -> None:
    """Write a page that shows every head over the text, and open it in the browser. The page needs no network."""
    with _plain_errors():
        path = _free_name() if output is None else output
        _check_writable(path)
        source = _Source(text, file, model, layers, heads, target, truncate=truncate, save=save)
        _check_apart({"--output": path, "--save": save, "--file": file, "TEXT": source.saved})
        with _busy() as say:
            recording = source.recording(say)
            say("drawing the page")
            from multihead.view.opening import start
            from multihead.view.page import write_page

            opening = start(recording, source.token(token, recording))
            source.keep(recording)
            write_page(recording, path, start=opening)
        typer.echo(str(path))
        if not no_open and _has_display():
            import webbrowser

            webbrowser.open(path.resolve().as_uri())


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
    with _plain_errors():
        source = _Source(text, file, model, layers, heads, target, truncate=truncate, save=save)
        _check_apart({"--save": save, "--file": file})
        with _busy() as say:
            recording = source.recording(say)
        from rich.console import Console

        from multihead.view.opening import likely_token
        from multihead.view.terminal import summary

        chosen = source.token(token, recording)
        out = _writable_everywhere(Console(highlight=False))
        chosen = likely_token(recording) if chosen is None else chosen
        told = summary(recording, chosen, count=count, marks=every, plain=out.options.ascii_only)
        source.keep(recording)
        out.print(told)


@app.command(epilog=_ESTIMATE_EXAMPLES)
def estimate(
    length: Annotated[int, typer.Option("--length", metavar="TOKENS", min=1, help="Tokens of the text.")],
    *,
    model: Model = None,
    batch: Annotated[int, typer.Option("--batch", metavar="TEXTS", min=1, help="Texts at once.")] = 1,
    no_qk: Annotated[bool, typer.Option("--no-qk", help="Keep no queries and keys: statistics only.")] = False,
) -> None:
    """Say what seeing a text of some length through a model will cost: operations, seconds, bytes."""
    with _plain_errors():
        with _busy() as say:
            say("loading torch and transformers")
            from multihead.lens import estimate as cost_of
            from multihead.text import load_model

            say("opening the model")
            opened = load_model(model)
            say("measuring a small run")
            cost = cost_of(opened.model, length=length, batch=batch, qk=not no_qk)
        typer.echo(str(cost))


class _Source:
    """Where the recording comes from, checked before anything slow happens."""

    def __init__(
        self,
        text: str | None,
        file: Path | None,
        model: str | None,
        layers: str | None,
        heads: str | None,
        target: str | None,
        *,
        truncate: bool,
        save: Path | None,
    ) -> None:
        self.model, self.target, self.truncate, self.save = model, target, truncate, save
        self.layers = None if layers is None else numbers_of("--layers", layers)
        self.heads = None if heads is None else heads_of(heads)
        if save is not None:
            _check_writable(save)
        self.saved = Path(text) if text is not None and text.endswith(".safetensors") and file is None else None
        self.text = None if self.saved is not None else text_of(text, file)
        if self.saved is None:
            return
        given = {
            "--model": model,
            "--layers": layers,
            "--heads": heads,
            "--target": target,
            "--truncate": truncate or None,
            "--save": save,
        }
        unfitting = [name for name, value in given.items() if value is not None]
        if unfitting:
            raise ValueError(
                f"{unfitting[0]} says how to record, and {self.saved} is recorded already: leave one of them out."
            )

    def recording(self, say: Callable[[str], None]) -> "Recording":
        """Open the recording, or run the model."""
        if self.saved is not None:
            say("opening the recording")
            from multihead.recording import load

            return load(self.saved)
        say("loading torch and transformers")
        from multihead.text import DEFAULT_SENTENCE, load_model, read

        say("opening the model")
        model = load_model(self.model)
        say("reading the text")
        text = DEFAULT_SENTENCE if self.text is None else self.text
        return read(text, model, target=self.target, layers=self.layers, heads=self.heads, truncate=self.truncate)

    def keep(self, recording: "Recording") -> None:
        """Save what was seen, if asked to; only once all that was asked has proved to be there."""
        if self.save is not None:
            recording.save(self.save)

    def token(self, named: str | None, recording: "Recording") -> str | int | None:
        """The token to begin with; a number is a position unless the text has that number as a token."""
        if named is None and self.text is None and self.saved is None:
            from multihead.text import DEFAULT_TOKEN

            return DEFAULT_TOKEN
        if named is None:
            return None
        spelled = any(named in tokens for sequences in recording.texts.values() for tokens in sequences)
        return int(named) if named.isdecimal() and not spelled else named


def text_of(text: str | None, file: Path | None) -> str | None:
    """The text to read; None where nobody gave one.

    Raises:
        ValueError: it is named twice, or is no text.
        OSError: the file cannot be read.
    """
    if text is not None and file is not None:
        raise ValueError("there is a TEXT and a --file: give one of them.")
    if file is not None:
        return _decoded(file.read_bytes(), str(file))
    if text == "-" or (text is None and _piped()):
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return text


def _decoded(raw: bytes, name: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}; convert it first, for example "
            "with iconv."
        ) from None
    if "\0" in text:
        raise ValueError(f"{name} holds zero bytes, so it is no text.")
    return text


def _piped() -> bool:
    """Whether somebody sends text: a pipe or a file, not a terminal, and not /dev/null as under cron."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return sys.stdin is not None and not sys.stdin.isatty()
    return not stat.S_ISCHR(mode)


def numbers_of(option: str, words: str) -> list[int]:
    """``0,2-5`` as numbers.

    >>> numbers_of("--layers", "0,2-5")
    [0, 2, 3, 4, 5]

    Raises:
        ValueError: it is no such list.
    """
    found: list[int] = []
    for part in words.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first + last) > 9:
            raise ValueError(f"{option} {words!r} is no list of numbers: say for example {option} 0,2-5.")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(f"{option} {words!r} counts backwards: say {last}-{first}.")
        if len(numbers) > 10_000:
            raise ValueError(f"{option} {words!r} names {len(numbers)} of them: no model has so many.")
        found += numbers
    return found


def heads_of(words: str) -> list[int] | dict[int | str, list[int]]:
    """Heads for every layer, or ``layer:head`` pairs.

    >>> heads_of("2:1,5:9,5:10-11")
    {2: [1], 5: [9, 10, 11]}

    Raises:
        ValueError: it is neither.
    """
    if ":" not in words:
        return numbers_of("--heads", words)
    found: dict[int | str, list[int]] = {}
    for part in words.split(","):
        layer, colon, heads = part.partition(":")
        if not colon or not layer.strip().isdecimal():
            raise ValueError(f"--heads {words!r} is no list of layer:head: say for example --heads 2:1,5:9.")
        found.setdefault(int(layer), []).extend(numbers_of("--heads", heads))
    return found


def _free_name() -> Path:
    """attention.html in this folder, or the first of attention-2.html, ... that is free.

    Not the temporary folder: browsers in a sandbox cannot open files there.
    """
    names = (Path("attention.html" if number == 1 else f"attention-{number}.html") for number in range(1, 10_000))
    return next((name for name in names if not os.path.lexists(name)), Path("attention.html"))


def _check_writable(path: Path) -> None:
    """Raise before the work where a file can surely not be written after it."""
    folder = place_of(path).parent
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: the folder {folder} is not yours to write in.")


def _check_apart(files: dict[str, Path | None]) -> None:
    """Raise where one file would be written over another that was named."""
    places: dict[str, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        before = places.setdefault(os.path.realpath(path), name)
        if before != name:
            raise ValueError(f"{before} and {name} are one file, {path}: one would be written over the other.")


def _has_display() -> bool:
    """Whether a browser window would appear on somebody's screen."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


@contextmanager
def _busy() -> Iterator[Callable[[str], None]]:
    """A spinner on standard error that says what is being done, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda words: None  # noqa: ARG005
        return
    with console.status("starting ...") as status:
        yield lambda words: status.update(f"{words} ...")


def _writable_everywhere(console: "Console") -> "Console":
    """A console whose output never fails for a character that its terminal does not have."""
    reconfigure = getattr(console.file, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return console


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what users can mend into one sentence and exit status 2. A bug stays a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # nobody reads any more; the interpreter must not find that out again when it closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (MultiheadError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and not _raised_here(error):
            raise
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}."
        typer.echo(f"multihead: {message}", err=True)
        raise typer.Exit(2) from None


def _raised_here(error: Exception) -> bool:
    """Whether this package itself raised an error, and not one of the libraries below."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith("multihead.")


def main() -> None:
    """The ``multihead`` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
