"""The example at a smaller size: it comes to translate dates that it has never seen, and leaves what it says."""

import datetime
import math

import jaxtyping
import pytest
import torch
import typer
from typer.testing import CliRunner

import multihead as mh
from multihead.models import EncoderDecoder

pytest.importorskip("babel")

from examples import translate_dates
from examples.translate_dates import FIRST, FORMS, LAST, LOCALES, Example, Vocabulary

SOME = ("en_US", "fr", "ja")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small run, and the share of exact answers."""
    folder = tmp_path_factory.mktemp("dates")
    with pytest.MonkeyPatch.context() as patch:
        # shapes are checked everywhere else; here checking them would take longer than learning
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        share = translate_dates.run(folder, locales=SOME, steps=700, width=64, layers=2, rows=32, asked=40)
    return folder, share


def vocabulary(locales=SOME):
    learned, _ = translate_dates.split_dates(0)
    texts = (Example(date, locale, form).text for date in learned[:500] for locale in locales for form in FORMS)
    return Vocabulary(locales, texts)


def test_it_translates_dates_that_it_has_never_seen(trained):
    """A guess is right once in 36,525 times, and half of the texts name the month by a word."""
    _, share = trained
    assert share > 0.7


def test_the_model_is_kept(trained):
    model, words = EncoderDecoder.load(trained[0] / "model"), vocabulary()
    assert translate_dates.translate(model, words, [("fr", "mardi 14 juillet 1998")]) == ["1998-07-14"]
    # a character that nobody has seen stops nothing
    assert len(translate_dates.translate(model, words, [("fr", "14 ☃ 1998"), ("ja", "1998年7月14日")])) == 2


def test_the_heads_that_read_are_kept(trained):
    folder, _ = trained
    recording = mh.load(folder / "run.safetensors")
    assert [layer.name for layer in recording] == [f"decoder.blocks.{block}.cross_attention" for block in range(2)]
    text = Example(translate_dates.split_dates(0)[1][0], "ja", "full").text
    assert "".join(recording.texts["source"][0]) == f"<ja>{text}"
    assert recording.rows(recording.layers[0].index, [5]).sum(-1).allclose(torch.ones(1))
    page = (folder / "attention.html").read_text(encoding="utf-8")
    assert f"<title>Reading {text}</title>" in page


def test_no_date_is_learned_and_asked_for():
    learned, unseen = translate_dates.split_dates(0)
    every = {FIRST + datetime.timedelta(days) for days in range((LAST - FIRST).days + 1)}
    assert not set(learned) & set(unseen)
    assert {*learned, *unseen} == every
    assert len(unseen) == translate_dates.HELD_OUT
    assert translate_dates.split_dates(1)[1] != unseen


def test_the_text_and_its_locale_decide_the_date():
    """Else no model could be right: two dates would look the same. Each locale has dates here whose parts can swap."""
    dates = [
        datetime.date(year, month, day)
        for year in (1950, 2003, 2012, 2049)
        for month in (1, 5, 12)
        for day in (1, 5, 12)
    ]
    for locale in LOCALES:
        found: dict[str, datetime.date] = {}
        for date in dates:
            for form in FORMS:
                assert found.setdefault(Example(date, locale, form).text, date) == date
    # and the locale is needed
    assert Example(dates[1], "en_US", "short").text == "1/5/50"
    assert Example(datetime.date(1950, 5, 1), "es", "short").text == "1/5/50"


def test_there_are_many_locales_and_scripts():
    assert len(LOCALES) == len(set(LOCALES)) >= 40
    scripts = {locale: translate_dates.script(locale) for locale in LOCALES}
    assert (scripts["de"], scripts["ru"], scripts["ja"], scripts["ar"]) == ("Latin", "Cyrillic", "Cjk", "Arabic")
    assert len(set(scripts.values())) >= 12


def test_batches_hold_what_they_say():
    learned, _ = translate_dates.split_dates(0)
    words = vocabulary()
    source, valid, target = next(translate_dates.batches(learned, SOME, words, rows=7, seed=0))
    assert len(source) == len(target) == 7
    for row, real, written in zip(source, valid, target, strict=True):
        tokens = [words.tokens[token] for token in row[real]]
        assert not real[len(tokens) :].any()
        locale, text = tokens[0].strip("<>"), "".join(tokens[1:])
        begin, *characters, end = (words.tokens[token] for token in written)
        assert (begin, end) == (translate_dates.BEGIN, translate_dates.END)
        date = datetime.date.fromisoformat("".join(characters))
        assert date in set(learned)
        assert text in {Example(date, locale, form).text for form in FORMS}


def test_the_same_seed_gives_the_same_model(tmp_path):
    def weights(name, **options):
        sizes = {"locales": SOME[:1], "steps": 3, "width": 16, "layers": 1, "rows": 4, "asked": 1}
        translate_dates.run(tmp_path / name, **(sizes | options))
        return EncoderDecoder.load(tmp_path / name / "model").state_dict()

    first, again, other = weights("a"), weights("b"), weights("c", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_minutes_end_the_learning(tmp_path, capsys):
    sizes = {"locales": SOME[:1], "width": 16, "layers": 1, "rows": 4, "asked": 1}
    translate_dates.run(tmp_path, steps=10**9, minutes=0.002, **sizes)
    assert "exact match on 1 unseen dates" in capsys.readouterr().out


def test_the_command_line(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(translate_dates, "run", lambda folder, **options: calls.append((folder, options)))
    app = typer.Typer()
    app.command()(translate_dates.main)
    answer = CliRunner().invoke(app, ["--out", str(tmp_path), "--steps", "7", "--seed", "3"])
    assert answer.exit_code == 0, answer.output
    assert calls == [(tmp_path, {"steps": 7, "minutes": math.inf, "seed": 3})]
