"""The example at a smaller size: what it prints about heads is what plain definitions give."""

import math
from itertools import pairwise

import jaxtyping
import pytest
import torch
import typer
from typer.testing import CliRunner

import multihead as mh
from examples import long_document
from examples.long_document import Amount, Looks, Vocabulary
from multihead.models import Decoder
from tests.accuracy import check

LENGTH, APART = 2000, 256


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a run of a few steps, and what it gave."""
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        # shapes are checked everywhere else; here checking them would take longer than learning
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        texts = list(long_document.library(("logging", "html")))
        options = {"folder": folder / "model", "amount": Amount(steps=4), "count": LENGTH, "asked": 40, "apart": APART}
        found = long_document.run(folder / "run.safetensors", texts=texts, **options)
    return folder, found, texts, options


@pytest.fixture(scope="module")
def weights(small):
    """Every weight of the small run, (layers, heads, queries, keys), float64."""
    recording = mh.load(small[0] / "run.safetensors")
    return torch.stack([recording.rows(layer.index, range(LENGTH)) for layer in recording]).double()


def random_weights(heads: int, length: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(heads, length, length, generator=chance, dtype=torch.float64)
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf).softmax(-1)


def looked(weights, head, tokens, queries, others) -> Looks:
    """The definition, pair by pair."""
    same = after = chance = other = 0.0
    distances: dict[int, float] = {}
    for query, another in zip(queries, others, strict=True):
        for key, weight in enumerate(weights[head, query, : query + 1].tolist()):
            if key < query and tokens[key] == tokens[query]:
                same += weight
            if key > 0 and tokens[key - 1] == tokens[query]:
                after += weight
                chance += 1 / (query + 1)
                distances[query - key] = distances.get(query - key, 0.0) + weight
            if key > 0 and tokens[key - 1] == another:
                other += weight
    passed, reach = 0.0, math.nan
    for distance in sorted(distances):
        passed += distances[distance]
        if passed >= after / 2:
            reach = distance
            break
    count = len(queries)
    return Looks(0, head, same / count, after / count, chance / count, other / count, reach)


def values(looks: Looks) -> torch.Tensor:
    return torch.tensor([looks.same, looks.after, looks.chance, looks.other, looks.reach], dtype=torch.float64)


def test_shares_are_those_of_a_double_loop():
    length = 41
    tokens = torch.randint(7, (length,), generator=torch.Generator().manual_seed(1))
    weights = random_weights(3, length)
    # a head that looks at nothing but what followed the same token, where there is such a thing
    for query in range(length):
        found = [key for key in range(1, query + 1) if tokens[key - 1] == tokens[query]]
        weights[2, query] = 0.0
        weights[2, query, found or [0]] = 1 / max(1, len(found))
    recording = mh.Recording.from_weights([weights], [str(token) for token in tokens.tolist()])
    queries, others = torch.arange(20, length), (tokens[20:] + 1) % 7
    found = long_document.looks(recording, tokens, queries, others)
    exact = [looked(weights, head, tokens.tolist(), queries.tolist(), others.tolist()) for head in range(3)]
    for one, plain in zip(found, exact, strict=True):
        torch.testing.assert_close(values(one), values(plain), rtol=1e-12, atol=0.0)
    assert found[2].after == pytest.approx(1.0)
    assert found[2].other < 0.5
    assert found[0].after < 0.5
    # neither another head, nor keys one further on, pass for it
    for wrong in (
        looked(weights, 1, tokens.tolist(), queries.tolist(), others.tolist()),
        looked(weights, 0, tokens.roll(1).tolist(), queries.tolist(), others.tolist()),
    ):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(values(found[0]), values(wrong), rtol=1e-3, atol=0.0)


def test_shares_of_the_run_are_those_of_a_double_loop(small, weights):
    recording, found, _ = small[1]
    vocabulary = Vocabulary.load(small[0] / "model", Decoder.load(small[0] / "model").vocab_size)
    tokens = read(vocabulary)
    queries, others = long_document.questions(tokens, vocabulary, count=40, seed=0)
    assert len(recording) == 2
    for one in found[::3]:
        plain = looked(weights[one.layer], one.head, tokens.tolist(), queries.tolist(), others.tolist())
        torch.testing.assert_close(values(one), values(plain), rtol=1e-5, atol=0.0)


def read(vocabulary: Vocabulary) -> torch.Tensor:
    """What the model of the small run read."""
    return vocabulary.placed(vocabulary.numbers(long_document.document(LENGTH)), torch.Generator().manual_seed(0))


def test_shares_by_distance_are_those_of_the_weights(small, weights):
    recording = small[1][0]
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    for layer in recording:
        found = long_document.by_distance(layer)
        for place, (low, high) in enumerate(pairwise((*long_document.RANGES, LENGTH))):
            plain = weights[layer.index][:, (distance >= low) & (distance < high)].sum(-1) / LENGTH
            torch.testing.assert_close(found[:, place].double(), plain, rtol=1e-4, atol=1e-7)
            near = torch.stack(
                [weights[layer.index, :, query, : query + 1].flip(-1)[:, low:high].sum(-1) for query in range(100)]
            )
            part = long_document.near_by(recording, layer, 100)[:, place]
            torch.testing.assert_close(part.double(), near.mean(0), rtol=1e-4, atol=1e-7)
        assert found.sum(1).allclose(torch.ones(len(layer.heads)))
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found[:, 3], found.roll(1, 1)[:, 3], rtol=1e-2, atol=1e-7)


def test_far_links_are_the_strongest(small, weights):
    recording = small[1][0]
    side = int(recording.layers[0].statistics.block_size[0])
    block = torch.arange(LENGTH) // side * side
    # a pair counts where all of its block is far enough, and is not of the first keys
    counts = (block[:, None] - (block + side - 1) >= APART) & (block > 0)
    for layer, head in ((0, 1), (1, 2)):
        links = long_document.far_links(recording, layer, head, apart=APART, count=5)
        assert len({query for query, _, _ in links}) == 5
        for query, key, weight in links:
            assert query - key >= APART
            assert weight == pytest.approx(float(weights[layer, head, query, key]), rel=1e-5)
        assert links[0][2] == pytest.approx(float(weights[layer, head][counts].max()), rel=1e-5)
        assert [link[2] for link in links] == sorted((link[2] for link in links), reverse=True)


def test_a_head_that_is_switched_off_adds_nothing_and_comes_back(small):
    model = Decoder.load(small[0] / "model")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.randint(model.vocab_size, (1, 31), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        usual = model(tokens)
        with long_document.switched_off(model, 1, 2):
            without = model(tokens)
        plain = Decoder.load(small[0] / "model")
        rows = slice(2 * 32, 3 * 32)
        # values of nothing are mixed to nothing
        plain.blocks[1].attention.v_proj.weight[rows] = 0.0
        plain.blocks[1].attention.v_proj.bias[rows] = 0.0
        silent = plain(tokens)
        exact = plain.double()(tokens)
    check(without, exact, silent)
    with pytest.raises(AssertionError):
        check(usual, exact, silent)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_losses_are_those_of_the_formula():
    chance = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(5000, 7, generator=chance), torch.randint(7, (5000,), generator=chance)
    exact = -logits.double().softmax(-1).log()[torch.arange(4999), tokens[1:]]
    torch.testing.assert_close(long_document.losses(logits, tokens).double(), exact, rtol=1e-5, atol=1e-6)


def test_what_was_seen_before():
    assert long_document.seen_before(torch.tensor([3, 9, 3, 3, 4, 9])).tolist() == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]


def test_names_are_their_own_in_each_window():
    vocabulary = Vocabulary(["def", "(", ")"], names=5)
    tokens = ["def", "beam", "(", "ray", ")", "def", "ray", "(", "beam", ")", "def", "sun", "(", ")"]
    numbers = vocabulary.numbers(tokens)
    chance = torch.Generator().manual_seed(0)
    windows = [vocabulary.placed(numbers, chance).tolist() for _ in range(20)]
    for window in windows:
        assert [window[place] for place in (0, 2, 4, 5)] == [0, 1, 2, 0]
        assert window[1] == window[8] != window[3] == window[6]
        assert len({window[1], window[3], window[11]}) == 3
        assert max(window) < len(vocabulary) == 8
    assert len({window[1] for window in windows}) == 5
    # more names than there are: shared evenly
    many = vocabulary.placed(vocabulary.numbers(f"name{number}" for number in range(10)), chance)
    assert sorted(many.tolist()) == sorted(2 * list(range(3, 8)))


def test_tokens_are_pythons_own(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('# why\n\nif sun:\n    ray = 0x1F + .5 @ "a b"  # here\nπ\n', encoding="utf-8")
    tokens = long_document.tokens_of(path, "x.py")
    assert tokens == [
        "<x.py>",
        *["if", "sun", ":", "↵", "⇥", "ray", "=", "0x1F", "+", ".5", "@"],
        '"a b"',
        "↵",
        "⇤",
        "π",
        "↵",
    ]
    kinds = [long_document.kind(token) for token in tokens]
    assert kinds == [
        "<file>",
        *["if", "sun", ":", "↵", "⇥", "ray", "=", "<number>", "+", "<number>", "@", "<string>", "↵", "⇤", "π", "↵"],
    ]
    assert [long_document.kind(token) for token in ("<", "<=", "->", "...", ".")] == ["<", "<=", "->", "...", "."]


def test_what_is_read_is_not_learned_from(monkeypatch):
    monkeypatch.setattr(long_document, "tokens_of", lambda path, name: [name])
    learned = [name for (name,) in long_document.library()]
    held_out = [name for (name,) in long_document.library(long_document.HELD_OUT)]
    assert not set(learned) & set(held_out)
    assert {"tarfile.py", "logging/__init__.py"} < set(learned)
    assert {"asyncio/tasks.py", "json/decoder.py"} < set(held_out)
    assert not any(name.startswith(("asyncio/", "email/", "test/", "site-packages/")) for name in learned)
    with pytest.raises(ValueError, match=rf"have {len(held_out)} tokens, fewer than 100,000\.$"):
        long_document.document(100_000)


def test_a_model_that_is_kept_is_used_again(small, capsys):
    folder, (recording, found, lost), texts, options = small
    capsys.readouterr()
    again, same, _ = long_document.run(None, texts=texts, **options)
    printed = capsys.readouterr().out
    assert f"the model is that of {folder / 'model'}" in printed
    assert "step" not in printed
    for first, second in zip(recording, again, strict=True):
        assert torch.equal(first.q, second.q)
    assert [values(one).tolist() for one in same] == [values(one).tolist() for one in found]
    for one in found:
        more = lost[one.layer, one.head] - lost[None]
        assert f"{one.after:19.4f}  {one.chance:9.4f}  {one.other:18.4f}  {one.reach:11,.0f}  {more:+21.3f}" in printed
    assert list(again.texts["text"][0]) == list(map(long_document.shortened, long_document.document(LENGTH)))


def test_a_vocabulary_of_another_model_is_refused(small, tmp_path):
    Vocabulary(["a"], 3).save(tmp_path)
    assert Vocabulary.load(tmp_path, 4).words == ["a"]
    for text in ('{"words": ["a"], "names": 3}', '{"words": [1], "names": 8}', "[]", "{", None):
        (tmp_path / "words.json").unlink()
        if text is not None:
            (tmp_path / "words.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"words.json is not the vocabulary of this model, which has 9 tokens\.$"):
            Vocabulary.load(tmp_path, 9)


def test_a_text_without_repeated_names_is_refused():
    vocabulary = Vocabulary(["def"], names=5)
    with pytest.raises(ValueError, match="no name twice"):
        long_document.questions(torch.tensor([0, 1, 2, 3]), vocabulary, count=4, seed=0)


def test_amounts():
    assert Amount.of("1200") == Amount(steps=1200)
    assert Amount.of("2.5m") == Amount(minutes=2.5)
    for text in ("", "0", "-3", "m", "nanm", "1e3", "infm", "five"):
        with pytest.raises(ValueError, match="is neither a number of steps, such as 1200, nor of minutes"):
            Amount.of(text)


def test_minutes_end_the_learning(small):
    vocabulary = Vocabulary.of(small[2])
    config = long_document.config_of(vocabulary, layers=1, heads=2, head_dim=4)
    numbers = vocabulary.numbers(small[2][0])
    assert long_document.train(Decoder(config), numbers, vocabulary, Amount(minutes=0.002), seed=0) >= 1


def test_the_same_seed_gives_the_same_model(small):
    vocabulary = Vocabulary.of(small[2])
    numbers = vocabulary.numbers(token for text in small[2] for token in text)

    def weights(seed):
        torch.manual_seed(seed)
        model = Decoder(long_document.config_of(vocabulary, layers=1, heads=2, head_dim=4))
        assert long_document.train(model, numbers, vocabulary, Amount(steps=3), seed=seed) == 3
        return model.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_command_line(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(long_document, "run", lambda save, **options: calls.append((save, options)))
    app = typer.Typer()
    app.command()(long_document.main)
    arguments = ["--train", "5m", "--tokens", "3000", "--save", str(tmp_path / "a"), "--model", str(tmp_path)]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert calls == [(tmp_path / "a", {"folder": tmp_path, "amount": Amount(minutes=5), "count": 3000, "seed": 0})]
    wrong = CliRunner().invoke(app, ["--train", "soon"])
    assert wrong.exit_code == 2
    assert "neither a number of steps" in " ".join(wrong.output.replace("│", " ").split())
