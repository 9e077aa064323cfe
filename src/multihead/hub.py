"""Models of the transformers library from a folder, the hub's cache or the hub itself, quietly."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from multihead.conventions import in_words
from multihead.errors import SourceError

__all__ = ["first_sentence", "quiet_transformers", "with_name"]

_PATIENCE = 5.0

Model = TypeVar("Model")


def with_name(
    name: str | Path, load: Callable[..., Model], *, kind: str, files: Sequence[Sequence[str]], otherwise: str
) -> Model:
    """A model by its folder, or by its name on the hub: from the cache if it is there.

    Args:
        name: a folder, or a name on the hub.
        load: opens it, as ``load(source, name, local=...)``: a folder, or a name on the hub, where it is to be local in
            the cache alone.
        kind: of model, for messages.
        files: what its folder must hold: one of each of these.
        otherwise: what else can be done, as the end of a sentence.

    Raises:
        SourceError: there is none, or it cannot be opened.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        for needed in files:
            if not any((folder / file).is_file() for file in needed):
                raise SourceError(f"the folder {str(name)!r} holds no {kind}: it has no {in_words(needed, 'or')}.")
        return load(folder, folder.resolve().name, local=True)
    hub_name = str(name)
    if folder.exists() or hub_name.count("/") > 1 or hub_name.startswith((".", "~", "/")) or "\\" in hub_name:
        raise SourceError(f"there is no model folder {hub_name!r}: {otherwise}.")
    return _from_hub(hub_name, load, otherwise)


def _from_hub(name: str, load: Callable[..., Model], otherwise: str) -> Model:
    """From the cache, else from the hub; fast to fail where there is no network."""
    from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise SourceError(f"{name!r} is no folder and cannot be a name on the hub: {otherwise}.") from None
    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    try:
        return load(name, name, local=True)
    except SourceError as error:
        known = error
    if is_offline_mode() or not _reachable(constants.ENDPOINT):
        if cached:
            raise known
        why = "offline mode is on (HF_HUB_OFFLINE)" if is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        raise SourceError(f"{name!r} is no folder and is not in the cache, and {why}: {otherwise}.")
    return load(name, name, local=False)


def _reachable(endpoint: str) -> bool:
    """Whether the hub answers at all: the hub's own client would try for half a minute before it says no."""
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and remarks of transformers and the hub while a model is opened or run."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_sentence(error: BaseException) -> str:
    """The first line of another library's message, as one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
