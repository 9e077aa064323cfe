"""Translate dates as people write them into ISO 8601: an encoder-decoder trained from scratch, on a CPU, in minutes.

    pip install ".[examples]"
    python examples/translate_dates.py --out dates

It learns from dates of a hundred years, each in four forms (short, medium, long and full, by the Unicode CLDR) and 54
locales: "3/4/03", "Donnerstag, 3. April 2003", "2003年4月3日", "3 أبريل 2003". Then it is asked for dates that it has
seen in no locale. The first token names the locale, because 03/04 means two things; with that, the text decides the
date. Short forms have years of two digits, so all years are from 1950 to 2049, where no two share them. Babel writes
the Gregorian calendar and European digits, also where people use others as well.

What is left in the folder: the model, a recording of the heads with which the decoder read one text
(`multihead show dates/run.safetensors`), and a page that shows them.
"""

import datetime
import math
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from babel.dates import format_date
from torch import Tensor

import multihead as mh
from multihead import models
from multihead.view import write_page
from multihead.view.opening import start as opening

FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)
HELD_OUT = 2000
"""Dates that are in no text to learn from, in no locale."""
FORMS = ("short", "medium", "long", "full")
LOCALES = tuple(
    "af am ar az be bg bn ca cs cy da de el en_GB en_US es et eu fa fi fr ga he hi hr hu hy id is it ja ka kk km ko lt "  # noqa: SIM905
    "lv mn nb nl pl pt_BR ro ru sk sv sw ta th tr uk ur vi zh".split()
)
PADDING, BEGIN, END, UNKNOWN = "<padding>", "<begin>", "<end>", "<unknown>"


@dataclass(frozen=True)
class Example:
    """One date as the CLDR writes it in one locale and form."""

    date: datetime.date
    locale: str
    form: str

    @property
    def text(self) -> str:
        """What people write."""
        return format_date(self.date, self.form, locale=self.locale)


class Vocabulary:
    """Numbers for characters, locales and a few marks."""

    def __init__(self, locales: Sequence[str], texts: Iterator[str]) -> None:
        characters = sorted(set("0123456789-").union(*texts))
        self.tokens = [PADDING, BEGIN, END, UNKNOWN, *(f"<{locale}>" for locale in locales), *characters]
        self._numbers = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def number(self, token: str) -> int:
        """A token's number; that of UNKNOWN for one that was in no text to learn from."""
        return self._numbers.get(token, self._numbers[UNKNOWN])

    def sources(self, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """What the encoder reads for (locale, text) pairs: the locale, then the characters; and where they are real."""
        rows = [[self.number(f"<{locale}>"), *map(self.number, text)] for locale, text in texts]
        longest = max(map(len, rows))
        padded = [[*row, *[self.number(PADDING)] * (longest - len(row))] for row in rows]
        return torch.tensor(padded), torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]

    def targets(self, dates: Sequence[datetime.date]) -> Tensor:
        """What the decoder reads and writes: BEGIN, ten characters, END."""
        return torch.tensor([[self.number(token) for token in (BEGIN, *date.isoformat(), END)] for date in dates])


def split_dates(seed: int) -> tuple[list[datetime.date], list[datetime.date]]:
    """The dates to learn from, and those held out of every locale."""
    order = torch.randperm((LAST - FIRST).days + 1, generator=torch.Generator().manual_seed(seed)).tolist()
    every = [FIRST + datetime.timedelta(days) for days in order]
    return every[HELD_OUT:], every[:HELD_OUT]


def batches(
    dates: Sequence[datetime.date], locales: Sequence[str], vocabulary: Vocabulary, *, rows: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Sources, where they are real, and targets, without end; the texts of a batch have nearly one length."""
    chance = torch.Generator().manual_seed(seed)
    while True:
        draws = [torch.randint(len(what), (32 * rows,), generator=chance) for what in (dates, locales, FORMS)]
        examples = [
            Example(dates[a], locales[b], FORMS[c]) for a, b, c in zip(*(draw.tolist() for draw in draws), strict=True)
        ]
        by_length = sorted(((example.text, example) for example in examples), key=lambda pair: len(pair[0]))
        for place in torch.randperm(32, generator=chance).tolist():
            chosen = by_length[place * rows : (place + 1) * rows]
            source, valid = vocabulary.sources([(example.locale, text) for text, example in chosen])
            yield source, valid, vocabulary.targets([example.date for _, example in chosen])


def train(
    model: models.EncoderDecoder,
    data: Iterator[tuple[Tensor, Tensor, Tensor]],
    *,
    steps: int,
    minutes: float = math.inf,
    rate: float = 2e-3,
) -> None:
    """Let a model learn: AdamW, with a rate that rises for a twentieth of the steps and then falls to 0 as a cosine.

    With ``minutes`` the rate falls by the clock where that is ahead of the steps, and learning ends in time.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    start, total = time.monotonic(), 0.0
    model.train()
    for step in range(1, steps + 1):
        passed = max((step - 1) / steps, (time.monotonic() - start) / (60 * minutes))
        if passed >= 1.0:
            break
        optimizer.param_groups[0]["lr"] = rate * min(20 * step / steps, 0.5 * (1 + math.cos(math.pi * passed)))
        source, valid, target = next(data)
        # all targets are ten characters long, so they need no padding
        logits = model(source, target[:, :-1], source_valid=valid)
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if step % 100 == 0:
            typer.echo(f"step {step:5} of {steps}   loss {total / 100:.4f}   {time.monotonic() - start:4.0f} s")
            total = 0.0
    model.eval()


def translate(
    model: models.EncoderDecoder, vocabulary: Vocabulary, texts: Sequence[tuple[str, str]], *, rows: int = 256
) -> list[str]:
    """What the model writes for (locale, text) pairs, the likeliest character at each place."""
    found = []
    for first in range(0, len(texts), rows):
        source, valid = vocabulary.sources(texts[first : first + rows])
        begin = torch.full((len(source), 1), vocabulary.number(BEGIN))
        written = models.generate(
            model, begin, source=source, source_valid=valid, max_new_tokens=11, stop=[vocabulary.number(END)]
        )
        found += ["".join(vocabulary.tokens[token] for token in row) for row in written.rows()]
    return found


def script(locale: str) -> str:
    """The script that a locale's weekdays are written in: Latin, Cyrillic, Cjk."""
    letter = next(character for character in Example(FIRST, locale, "full").text if character.isalpha())
    return unicodedata.name(letter).split()[0].capitalize()


def exact_match(
    model: models.EncoderDecoder, vocabulary: Vocabulary, dates: Sequence[datetime.date], locales: Sequence[str]
) -> float:
    """The share of all dates, in every locale and form, that is translated without a mistake; by script, printed."""
    examples = [Example(date, locale, form) for locale in locales for form in FORMS for date in dates]
    # together in order of length, so that little of a batch is padding
    texts = sorted(((example.text, example) for example in examples), key=lambda pair: len(pair[0]))
    found = translate(model, vocabulary, [(example.locale, text) for text, example in texts])
    right = defaultdict(list)
    mistakes = []
    for (text, example), written in zip(texts, found, strict=True):
        right[script(example.locale)].append(written == example.date.isoformat())
        if written != example.date.isoformat():
            mistakes.append(f"  {example.locale:6} {example.form:6} {text}  ->  {written}, not {example.date}")
    for name, answers in sorted(right.items(), key=lambda item: -len(item[1])):
        typer.echo(f"{name:12} {sum(answers):6} of {len(answers):6}   {sum(answers) / len(answers):8.3%}")
    typer.echo("\n".join(["mistakes:", *mistakes[:10]] if mistakes else ["no mistakes"]))
    return sum(map(sum, right.values())) / len(examples)


def record(
    model: models.EncoderDecoder, vocabulary: Vocabulary, example: Example, folder: Path
) -> tuple[mh.Recording, Path]:
    """How each head of the decoder reads one text while it writes the date: a recording, and a page of it."""
    source, _ = vocabulary.sources([(example.locale, example.text)])
    target = vocabulary.targets([example.date])[:, :-1]
    with mh.observe(model, layers="*.cross_attention") as seen, torch.no_grad():
        model(source, target)
    seen.check()
    recording = seen.recording(tokens=[BEGIN, *example.date.isoformat()], source=[f"<{example.locale}>", *example.text])
    recording.save(folder / "run.safetensors")
    title = f"Reading {example.text}"
    # the page opens at the hyphen after the year, where the decoder is about to write the month
    return recording, write_page(recording, folder / "attention.html", title=title, start=opening(recording, 5))


def run(
    folder: Path,
    *,
    locales: Sequence[str] = LOCALES,
    steps: int = 1200,
    minutes: float = math.inf,
    seed: int = 0,
    width: int = 128,
    layers: int = 3,
    rows: int = 128,
    asked: int = 50,
) -> float:
    """Learn, ask for ``asked`` unseen dates in every locale and form, and keep the model, a recording and a page.

    Returns:
        The share of exact answers.
    """
    torch.manual_seed(seed)
    learned, unseen = split_dates(seed)
    vocabulary = Vocabulary(
        locales, (Example(date, locale, form).text for date in learned[:500] for locale in locales for form in FORMS)
    )
    config = models.Config(
        vocab_size=len(vocabulary),
        embed_dim=width,
        encoder_layers=layers,
        decoder_layers=layers,
        num_heads=4,
        feedforward_dim=4 * width,
        norm_first=True,
        position="rotary",
        scale_embeddings=False,
        dropout=0.0,
    )
    model = models.EncoderDecoder(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{len(locales)} locales, {len(vocabulary)} tokens, {count:,} parameters")
    train(model, batches(learned, locales, vocabulary, rows=rows, seed=seed), steps=steps, minutes=minutes)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model")
    share = exact_match(model, vocabulary, unseen[:asked], locales)
    typer.echo(f"exact match on {asked} unseen dates, in every locale and form: {share:.3%}")
    for locale in locales[:: max(1, len(locales) // 8)]:
        text = Example(unseen[0], locale, "full").text
        typer.echo(f"  {locale:6} {text}  ->  {translate(model, vocabulary, [(locale, text)])[0]}")
    _, page = record(model, vocabulary, Example(unseen[0], locales[-1], "full"), folder)
    typer.echo(f"{page}: how each head of the decoder reads one text")
    return share


def main(
    out: Annotated[Path, typer.Option(help="The folder for the model, the recording and the page.")] = Path("dates"),
    steps: Annotated[int, typer.Option(help="Batches to learn from; the same seed then gives the same model.")] = 1200,
    minutes: Annotated[float, typer.Option(help="The most minutes to learn, whatever the steps.")] = math.inf,
    seed: Annotated[int, typer.Option(help="Of the first weights, the split of the dates and the batches.")] = 0,
) -> None:
    """Train an encoder-decoder to translate dates of 54 locales into ISO 8601, and show how its heads read."""
    run(out, steps=steps, minutes=minutes, seed=seed)


if __name__ == "__main__":
    typer.run(main)
