"""Read a hundred thousand tokens of source, and see every head's attention whole: a language model trained on a CPU.

    pip install ".[view]"
    python examples/long_document.py --model source-model --save run.safetensors
    multihead view run.safetensors

The text is the source of Python's own standard library, in the tokens of Python itself. The 500 commonest have
numbers of their own; every other name is, in each window to learn from, one of 2,048 names without a meaning, another
in every window. So what such a name does can only be learned from the same text: where it stood before. Four packages
are held out, and files of them, one after another, are the document.

What is printed: how well the model reads, near and far beyond the lengths that it has learned from; what each head
looks at, measured; what is lost without it; and the strongest links between places far apart. docs/long-document.md
shows the pictures.
"""

import contextlib
import json
import math
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

import multihead as mh
from multihead import models
from multihead.errors import SourceError
from multihead.recording.maps import map_block

HELD_OUT = ("asyncio", "email", "unittest", "json")
"""Packages of the standard library that are never learned from; the document is files of these, in this order."""
LEFT_OUT = {"test", "tests", "lib2to3", "idlelib", "encodings", "ensurepip", "turtledemo", "site-packages"}
"""Folders that are read by nobody: tests, tables of numbers, and what is not the library's."""
NEWLINE, INDENT, DEDENT = "↵", "⇥", "⇤"
FILE, STRING, NUMBER = "<file>", "<string>", "<number>"
WINDOWS = (256, 512, 1024)
"""Tokens of a window to learn from: each length for a third of the time."""
BATCH = 1024
"""Tokens of all windows of a step."""
FAR = WINDOWS[-1]
"""Tokens further apart than these were never seen together."""
RANGES = (0, 1, 2, 32, 512, FAR)
"""Where ranges of distance begin, for people to read."""


def tokens_of(path: Path, name: str) -> list[str]:
    """The tokens of a Python file, with neither comments nor blank lines; the first one is its name."""
    marks = {tokenize.NEWLINE: NEWLINE, tokenize.INDENT: INDENT, tokenize.DEDENT: DEDENT}
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
    # newer Pythons take formatted strings apart; their text is no name
    literal = {getattr(tokenize, name, None) for name in ("FSTRING_MIDDLE", "TSTRING_MIDDLE")}
    found = [f"<{name}>"]
    with tokenize.open(path) as file:
        for one in tokenize.generate_tokens(file.readline):
            if one.type not in nothing:
                found.append(repr(one.string) if one.type in literal else marks.get(one.type, one.string))
    return found


def library(packages: Sequence[str] | None = None) -> Iterator[list[str]]:
    """The tokens of each file of some packages of the standard library; None: of all that are not held out."""
    root = Path(sysconfig.get_path("stdlib"))
    for place in ("*",) if packages is None else packages:
        for path in sorted(root.glob("**/*.py" if packages is None else f"{place}/**/*.py")):
            parts = path.relative_to(root).parts
            if not LEFT_OUT.intersection(parts) and (packages is not None or parts[0] not in HELD_OUT):
                yield tokens_of(path, "/".join(parts))


def document(count: int) -> list[str]:
    """The first tokens of the packages that are held out.

    Raises:
        ValueError: they have fewer.
    """
    found: list[str] = []
    for tokens in library(HELD_OUT):
        found += tokens
        if len(found) >= count:
            return found[:count]
    raise ValueError(f"the packages {', '.join(HELD_OUT)} have {len(found):,} tokens, fewer than {count:,}.")


def kind(token: str) -> str:
    """What a token is taken for: ``<file>``, ``<string>``, ``<number>``; or itself."""
    if len(token) > 2 and token[0] == "<" and token[-1] == ">":
        return FILE
    if token[0].isdigit() or (token[0] == "." and token[1:2].isdigit()):
        return NUMBER
    return token if token.isidentifier() or token[-1] not in "'\"" else STRING


class Vocabulary:
    """Numbers for common tokens, and names without a meaning for the others.

    Args:
        words: the tokens that have numbers of their own.
        names: how many names without a meaning there are; their numbers follow.
    """

    def __init__(self, words: Sequence[str], names: int = 2048) -> None:
        self.words, self.names = list(words), names
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + self.names

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], *, words: int = 500, names: int = 2048) -> "Vocabulary":
        """One whose words are the commonest tokens of some texts."""
        counts = Counter(kind(token) for text in texts for token in text)
        return cls([word for word, _ in counts.most_common(words)], names)

    def numbers(self, tokens: Iterable[str]) -> Tensor:
        """(tokens,): numbers of words; names that are none have numbers from ``len(words)`` on, as they first come."""
        numbers = dict(self._numbers)
        return torch.tensor([numbers.setdefault(kind(token), len(numbers)) for token in tokens])

    def placed(self, numbers: Tensor, chance: torch.Generator) -> Tensor:
        """A window as a model reads it: its rare names drawn among those without a meaning, each name its own.

        Two names share one where there are more than ``names`` of them.
        """
        rare = numbers >= len(self.words)
        different, which = numbers[rare].unique(return_inverse=True)
        drawn = torch.randperm(self.names, generator=chance)[torch.arange(len(different)) % self.names]
        return numbers.masked_scatter(rare, len(self.words) + drawn[which])

    def save(self, folder: Path) -> None:
        """Write ``words.json``."""
        values = {"words": self.words, "names": self.names}
        (folder / "words.json").write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, size: int) -> "Vocabulary":
        """What :meth:`save` wrote.

        Raises:
            ValueError: it cannot be read, or is not that of a model with ``size`` tokens.
        """
        try:
            values = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            values = None
        words, names = (values.get("words"), values.get("names")) if isinstance(values, dict) else (None, None)
        fits = isinstance(words, list) and all(isinstance(word, str) for word in words) and type(names) is int
        if not fits or len(words) + names != size:
            raise ValueError(f"{folder / 'words.json'} is not the vocabulary of this model, which has {size} tokens.")
        return cls(words, names)


@dataclass(frozen=True)
class Amount:
    """How long to learn: by steps, or by the clock."""

    steps: float = math.inf
    minutes: float = math.inf

    @classmethod
    def of(cls, text: str) -> "Amount":
        """``1200`` steps, or ``5m``: minutes.

        Raises:
            ValueError: it is neither.
        """
        try:
            amount = cls(minutes=float(text[:-1])) if text.endswith("m") else cls(steps=int(text))
        except ValueError:
            amount = cls(steps=0)
        if not 0 < min(amount.steps, amount.minutes) < math.inf:
            raise ValueError(f"{text!r} is neither a number of steps, such as 1200, nor of minutes, such as 5m.")
        return amount


def config_of(vocabulary: Vocabulary, *, layers: int = 2, heads: int = 4, head_dim: int = 32) -> models.Config:
    """RMSNorm before each part, and rotary positions, the slowest of which turn once in 2.6 million tokens."""
    return models.Config(
        vocab_size=len(vocabulary),
        embed_dim=heads * head_dim,
        encoder_layers=0,
        decoder_layers=layers,
        num_heads=heads,
        feedforward_dim=2 * heads * head_dim,
        activation="gelu",
        norm="rms",
        norm_first=True,
        position="rotary",
        rotary_base=1e6,
        dropout=0.0,
    )


def train(
    model: models.Decoder, numbers: Tensor, vocabulary: Vocabulary, amount: Amount, *, seed: int, rate: float = 4e-3
) -> int:
    """Let a model learn from windows of a text; the rate rises at first, then falls to 0 as a cosine.

    The blocks' matrices learn by Muon (Jordan et al. 2024), all else by AdamW.

    Returns:
        The steps that were made.
    """
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    known = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    optimizers = {
        5 * rate: torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        rate: torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    }
    chance = torch.Generator().manual_seed(seed)
    start, total, step = time.monotonic(), 0.0, 0
    model.train()
    while (passed := max(step / amount.steps, (time.monotonic() - start) / (60 * amount.minutes))) < 1.0:
        step += 1
        for most, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = most * min(step / 50, 0.5 * (1 + math.cos(math.pi * passed)))
        length = min(WINDOWS[int(len(WINDOWS) * passed)], len(numbers) - 1)
        starts = torch.randint(len(numbers) - length, (max(1, BATCH // length),), generator=chance).tolist()
        windows = [vocabulary.placed(numbers[first : first + length + 1], chance) for first in starts]
        tokens = torch.stack(windows)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        total += loss.item()
        if step % 50 == 0:
            seconds = time.monotonic() - start
            typer.echo(f"step {step:5}   windows of {length:4}   loss {total / 50:.3f}   {seconds:4.0f} s")
            total = 0.0
    model.eval()
    return step


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token but the first, in nats: logits (tokens, vocabulary) to (tokens - 1,)."""
    pieces = zip(logits[:-1].split(4096), tokens[1:].split(4096), strict=True)
    return torch.cat([F.cross_entropy(said, came, reduction="none") for said, came in pieces])


def seen_before(tokens: Tensor) -> Tensor:
    """(tokens,), True where the same number stands earlier."""
    _, which = tokens.unique(return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(tokens)).scatter_reduce_(
        0, which, torch.arange(len(tokens)), reduce="amin"
    )
    return torch.arange(len(tokens)) > first[which]


@contextlib.contextmanager
def switched_off(model: models.Decoder, layer: int, head: int) -> Iterator[None]:
    """A model without what one head adds; afterwards it is as it was."""
    attention = model.blocks[layer].attention
    columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    weight = attention.out_proj.weight.data
    kept = weight[:, columns].clone()
    weight[:, columns] = 0.0
    try:
        yield
    finally:
        weight[:, columns] = kept


@torch.no_grad()
def without_each(
    model: models.Decoder, tokens: Tensor, vocabulary: Vocabulary, *, windows: int = 16
) -> dict[tuple[int, int] | None, float]:
    """The loss on rare names that stand earlier in their window, with every head (None), and without each of them.

    Windows are as long as the longest ones to learn from, and spread evenly over a text.
    """
    length = min(FAR, len(tokens))
    starts = torch.linspace(0, len(tokens) - length, min(windows, len(tokens) // length)).long().tolist()
    texts = [tokens[first : first + length] for first in starts]

    def loss() -> float:
        found = []
        for text in texts:
            asked = (seen_before(text) & (text >= len(vocabulary.words)))[1:]
            found.append(losses(model(text[None])[0], text)[asked])
        return torch.cat(found).mean().item()

    found: dict[tuple[int, int] | None, float] = {None: loss()}
    for layer in range(model.config.decoder_layers):
        for head in range(model.config.num_heads):
            with switched_off(model, layer, head):
                found[layer, head] = loss()
    return found


@dataclass(frozen=True)
class Looks:
    """Where one head looks from names that stand earlier in the text: shares of its attention, means over queries."""

    layer: int
    head: int
    same: float
    """To earlier places of the same name."""
    after: float
    """To the tokens that follow these: what an induction head looks at (Olsson et al. 2022)."""
    chance: float
    """What these tokens would get if all tokens got the same."""
    other: float
    """To the tokens that follow the places of another name, one that stands earlier too."""
    reach: float
    """Half of what ``after`` counts goes no further back than this, in tokens; NaN where there is nothing."""


def questions(tokens: Tensor, vocabulary: Vocabulary, *, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places of rare names that stand earlier in a text, ascending; and for each the number of another such name.

    Raises:
        ValueError: there are none.
    """
    chance = torch.Generator().manual_seed(seed)
    rare = (tokens >= len(vocabulary.words)).nonzero()[:, 0]
    known = rare[seen_before(tokens)[rare]]
    chosen = known[torch.randperm(len(known), generator=chance)[:count]].sort().values
    queries, others = [], []
    for query in chosen.tolist():
        earlier = tokens[rare[rare < query]]
        earlier = earlier[earlier != tokens[query]]
        if len(earlier):
            queries.append(query)
            others.append(int(earlier[torch.randint(len(earlier), (1,), generator=chance)]))
    if not queries:
        raise ValueError("the document has no name twice that is no common word: read more tokens.")
    return torch.tensor(queries), torch.tensor(others)


def followers(tokens: Tensor, names: Tensor, queries: Tensor) -> Tensor:
    """(queries, keys), True at keys up to each query whose token before is its name."""
    keys = torch.arange(len(tokens))
    return (tokens.roll(1) == names[:, None]) & (keys > 0) & (keys <= queries[:, None])


def looks(recording: mh.Recording, tokens: Tensor, queries: Tensor, others: Tensor) -> list[Looks]:
    """Where each head looks from some queries, by their exact weights.

    Args:
        recording: of a causal model.
        tokens: (tokens,), the numbers that the model read.
        queries: places of names that stand earlier.
        others: for each the number of another name that does.

    Memory: sixteen rows of weights of a layer.
    """
    found = []
    for layer in recording:
        heads = len(layer.heads)
        sums = torch.zeros(4, heads, dtype=torch.float64)
        by_distance = torch.zeros(heads, len(tokens), dtype=torch.float64)
        for asking, another in zip(queries.split(16), others.split(16), strict=True):
            weights = recording.rows(layer.index, asking.tolist()).double()
            same = (tokens == tokens[asking][:, None]) & (torch.arange(len(tokens)) < asking[:, None])
            after, other = followers(tokens, tokens[asking], asking), followers(tokens, another, asking)
            sums += torch.stack(
                [
                    (weights * same).sum((1, 2)),
                    (weights * after).sum((1, 2)),
                    (after.sum(1).double() / (asking + 1)).sum().expand(heads),
                    (weights * other).sum((1, 2)),
                ]
            )
            row, key = after.nonzero(as_tuple=True)
            by_distance.index_add_(1, asking[row] - key, weights[:, row, key])
        for head, shares, mass in zip(layer.heads, (sums / len(queries)).T.tolist(), by_distance, strict=True):
            half = int(torch.searchsorted(mass.cumsum(0), mass.sum() / 2)) if mass.sum() > 0 else math.nan
            found.append(Looks(layer.index, head, *shares, half))
    return found


def far_links(
    recording: mh.Recording, layer: int, head: int, *, apart: int, count: int
) -> list[tuple[int, int, float]]:
    """The strongest links (query, key, weight) of a head between tokens at least so far apart, one for each query.

    Found by the recorded peaks of blocks, and then looked up in them. What looks at the text's first block is left
    out: the first token is where heads look that have nothing to look at (Xiao et al. 2024).
    """
    seen = recording.layer(layer)
    statistics, place = seen.statistics, seen.heads.index(head)
    assert statistics.block_peaks is not None and statistics.block_size is not None  # noqa: S101, PT018  as observed
    peaks, side = statistics.block_peaks[0, place], int(statistics.block_size[0])
    first, length = torch.arange(len(peaks)) * side, seen.sizes.queries
    # the first query of a block and the last key of another are the two that are nearest
    eligible = (first[:, None] - (first + side - 1) >= apart) & (first > 0)
    order = peaks.masked_fill(~eligible, -1.0).flatten().argsort(descending=True)
    found: dict[int, tuple[int, int, float]] = {}
    for number in order[: int(eligible.sum())].tolist():
        rows, keys = (range(block * side, min((block + 1) * side, length)) for block in divmod(number, peaks.shape[1]))
        tile = recording.tile(layer, rows, keys, heads=[head])[0]
        query, key = divmod(int(tile.argmax()), tile.shape[1])
        link = (rows[query], keys[key], tile[query, key].item())
        found.setdefault(link[0], link)
        if len(found) == count:
            break
    return list(found.values())


def around(shown: Sequence[str], place: int) -> str:
    """A token in its line's company: three before it, and two after."""
    before, behind = shown[max(0, place - 3) : place], shown[place + 1 : place + 3]
    return " ".join([*before, f"[{shown[place]}]", *behind])


def shortened(token: str) -> str:
    """A token as it is shown: a long string by its beginning, on one line."""
    line = token.replace("\n", "⏎")
    return line if len(line) <= 40 else f"{line[:36]}…{line[-1]}"


def by_distance(layer: mh.recording.Layer) -> Tensor:
    """(heads, ranges): the share of each head's attention in each of ``RANGES``, from the mass by distance."""
    mass, edges = layer.statistics.offsets, layer.statistics.offset_edges
    assert mass is not None and edges is not None  # noqa: S101, PT018  as observed
    held = [(edges[:-1] >= low) & (edges[:-1] < high) for low, high in pairwise((*RANGES, math.inf))]
    return torch.stack([mass[0][:, here].sum(1) for here in held], 1) / layer.sizes.queries


def near_by(recording: mh.Recording, layer: mh.recording.Layer, count: int) -> Tensor:
    """(heads, ranges): the same of the first tokens alone, from their weights; memory: count² a head."""
    first = range(min(count, layer.sizes.queries))
    weights = recording.tile(layer.index, first, first)
    distance = torch.tensor(first)[:, None] - torch.tensor(first)
    held = [(distance >= low) & (distance < high) for low, high in pairwise((*RANGES, math.inf))]
    return torch.stack([weights[:, here].sum(1) for here in held], 1) / len(first)


@torch.no_grad()
def observed(model: models.Decoder, tokens: Tensor, shown: Sequence[str]) -> tuple[mh.Recording, Tensor]:
    """A recording of a model that reads a text, with what maps and traits are made of; and the loss of each token.

    Memory: the logits, tokens × vocabulary; and what is recorded, O(tokens).
    """
    # the page needs no block maps of short texts, but the search for strong links does
    side = map_block(len(tokens), len(tokens)) or 8
    asked = mh.Statistics(received=True, offsets=True, columns=(0,), blocks=(side, side), block_peaks=True)
    with mh.observe(model, statistics=asked) as seen:
        logits = model(tokens[None])[0]
    seen.check()
    return seen.recording(tokens=list(map(shortened, shown))), losses(logits, tokens)


def tell_reading(found: Tensor, tokens: Tensor, vocabulary: Vocabulary) -> None:
    """Print how well a text was read: by place, and by what came."""
    rare, known = (tokens >= len(vocabulary.words))[1:], seen_before(tokens)[1:]
    for low, high in pairwise((0, FAR, 16384, len(found))):
        if high > low:
            typer.echo(f"loss of tokens {low:6,} to {min(high, len(found)):7,}   {found[low:high].mean():.3f}")
    kinds = {"new rare names": rare & ~known, "rare names seen before": rare & known, "other tokens": ~rare}
    for words, which in kinds.items():
        typer.echo(f"loss of {which.sum():7,} {words:23} {found[which].mean():.3f}")
    typer.echo(f"of a guess among all {len(vocabulary):,}: {math.log(len(vocabulary)):.3f}")


def tell_heads(recording: mh.Recording, found: Sequence[Looks], lost: dict[tuple[int, int] | None, float]) -> None:
    """Print a line a head: its kind, where it looks from names seen before, how far, and what is lost without it."""
    typer.echo("\nfrom rare names seen before, the share of attention that goes ...")
    typer.echo(
        "head  kind            to the same  to what followed it  by chance  after another name  half within  "
        "loss without the head"
    )
    # what was recorded says enough; to measure the rest would take another pass over all pairs
    for one, traits in zip(found, recording.traits(measure=False), strict=True):
        more = lost[one.layer, one.head] - lost[None]
        typer.echo(
            f"{one.layer}.{one.head}   {traits.label:15} {one.same:11.4f}  {one.after:19.4f}  {one.chance:9.4f}  "
            f"{one.other:18.4f}  {one.reach:11,.0f}  {more:+21.3f}"
        )
    typer.echo(
        f"\nshare of attention by distance: of the first {FAR:,} tokens, as many as were ever learned from together"
    )
    tell_distances(recording, [near_by(recording, layer, FAR) for layer in recording])
    typer.echo("\nthe same of the whole document")
    tell_distances(recording, list(map(by_distance, recording)))


def tell_distances(recording: mh.Recording, found: Sequence[Tensor]) -> None:
    """Print a line a head: its shares in each of ``RANGES``, of each layer (heads, ranges)."""
    names = [f"{low}" if low + 1 == high else f"{low}-{high - 1}" for low, high in pairwise(RANGES)]
    typer.echo("head  " + "".join(f"{name:>10}" for name in (*names, f"{RANGES[-1]}-")))
    for layer, shares in zip(recording, found, strict=True):
        for head, row in zip(layer.heads, shares.tolist(), strict=True):
            typer.echo(f"{layer.index}.{head}   " + "".join(f"{share:10.4f}" for share in row))


def tell_links(recording: mh.Recording, found: Sequence[Looks], *, apart: int) -> None:
    """Print the strongest links between far places; and of the one of the head that copies most, all heads' links."""
    shown = recording.texts["text"][0]
    typer.echo(f"\nstrongest links between tokens at least {apart:,} apart")
    for one in found:
        for query, key, weight in far_links(recording, one.layer, one.head, apart=apart, count=3):
            places = f"{around(shown, query)}  ({query:,})  →  {around(shown, key)}  ({key:,})"
            typer.echo(f"{one.layer}.{one.head}   {weight:.3f}   {places}")
    best = max(found, key=lambda one: one.after)
    links = far_links(recording, best.layer, best.head, apart=apart, count=1)
    if links:
        typer.echo(f"\nwhere every head looks from {around(shown, links[0][0])}  ({links[0][0]:,})")
        typer.echo("\n".join(map(str, recording.top(links[0][0], count=8))))


def learned(
    folder: Path | None, amount: Amount, *, seed: int, texts: Iterable[Sequence[str]] | None = None
) -> tuple[models.Decoder, Vocabulary]:
    """The model of a folder; or where there is none yet a new one, which is kept there.

    Args:
        folder: None to keep nothing.
        amount: how long to learn.
        seed: of the first weights, the windows and the names.
        texts: what to learn from; None: the standard library but for what is held out.
    """
    if folder is not None and (folder / "config.json").exists():
        model = models.Decoder.load(folder)
        typer.echo(f"the model is that of {folder}")
        return model, Vocabulary.load(folder, model.vocab_size)
    read = list(library() if texts is None else texts)
    vocabulary = Vocabulary.of(read)
    numbers = vocabulary.numbers(token for text in read for token in text)
    torch.manual_seed(seed)
    model = models.Decoder(config_of(vocabulary))
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{len(numbers):,} tokens to learn from, {len(vocabulary):,} in the vocabulary, {count:,} parameters")
    start = time.monotonic()
    steps = train(model, numbers, vocabulary, amount, seed=seed)
    typer.echo(f"learned in {steps} steps, {time.monotonic() - start:.0f} s")
    if folder is not None:
        model.save(folder)
        vocabulary.save(folder)
    return model, vocabulary


def run(
    save: Path | None,
    *,
    folder: Path | None = None,
    amount: Amount = Amount(minutes=5),
    count: int = 100_000,
    seed: int = 0,
    asked: int = 512,
    apart: int = FAR,
    texts: Iterable[Sequence[str]] | None = None,
) -> tuple[mh.Recording, list[Looks], dict[tuple[int, int] | None, float]]:
    """Learn, read a document, tell what each head looks at, and keep what was seen.

    Args:
        save: the file for the recording; None to keep none.
        folder: of the model; see :func:`learned`.
        amount: how long to learn.
        count: tokens of the document.
        seed: of everything that is drawn.
        asked: how many names to look from.
        apart: how many tokens at least lie between the two of a far link.
        texts: what to learn from; see :func:`learned`.
    """
    shown = document(count)
    model, vocabulary = learned(folder, amount, seed=seed, texts=texts)
    numbers = vocabulary.numbers(shown)
    tokens = vocabulary.placed(numbers, torch.Generator().manual_seed(seed))
    names = len(numbers[numbers >= len(vocabulary.words)].unique())
    typer.echo(f"a document of {count:,} tokens, with {names:,} rare names")
    start = time.monotonic()
    recording, found = observed(model, tokens, shown)
    typer.echo(f"read and observed in {time.monotonic() - start:.0f} s")
    if save is not None:
        recording.save(save)
        typer.echo(f"{save}: {save.stat().st_size / 1e6:.0f} MB")
    tell_reading(found, tokens, vocabulary)
    seen = looks(recording, tokens, *questions(tokens, vocabulary, count=asked, seed=seed))
    lost = without_each(model, tokens, vocabulary)
    tell_heads(recording, seen, lost)
    tell_links(recording, seen, apart=apart)
    if save is not None:
        typer.echo(f"\nto look at it: multihead view {save}")
    return recording, seen, lost


def main(
    train: Annotated[str, typer.Option(help="How long to learn: 1200 (steps) or 5m (minutes).")] = "5m",
    tokens: Annotated[int, typer.Option(help="Tokens of the document.", min=100)] = 100_000,
    save: Annotated[Path, typer.Option(help="The file for the recording.")] = Path("run.safetensors"),
    model: Annotated[Path | None, typer.Option(help="A folder for the model; one that is there is read.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights, the windows and the names.")] = 0,
) -> None:
    """Train a small language model on Python's standard library, and see how its heads read a long document."""
    try:
        run(save, folder=model, amount=Amount.of(train), count=tokens, seed=seed)
    except (ValueError, SourceError) as error:
        raise typer.BadParameter(str(error)) from None


if __name__ == "__main__":
    typer.run(main)
