"""How commands talk: errors as one sentence, a spinner while people wait."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from multihead.errors import MultiheadError

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def busy() -> Iterator[Callable[[str], None]]:
    """A spinner on standard error that says what is being done, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda words: None  # noqa: ARG005
        return
    with console.status("starting ...") as status:
        yield lambda words: status.update(f"{words} ...")


def writable_everywhere(console: "Console") -> "Console":
    """A console whose output never fails for a character that its terminal does not have."""
    reconfigure = getattr(console.file, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return console


def has_display() -> bool:
    """Whether a browser window would appear on somebody's screen."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what users can mend into one sentence and exit status 2. A bug stays a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # nobody reads any more; the interpreter must not find that out again when it closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (MultiheadError, OSError, ValueError, ImportError) as error:
        if isinstance(error, ValueError | ImportError) and not raised_here(error):
            raise
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}."
        typer.echo(f"multihead: {message}", err=True)
        raise typer.Exit(2) from None


def raised_here(error: Exception) -> bool:
    """Whether this package itself raised an error, and not one of the libraries below."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith("multihead.")


def show_file(path: Path, *, opens: bool) -> None:
    """Say where a page was written, and open it if there is a screen."""
    typer.echo(str(path))
    if opens and has_display():
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
