"""Positions added to embeddings: waves against the formula, vectors against their table."""

import copy
import pickle

import pytest
import torch
from torch import nn

from multihead.positions import Learned, Sinusoidal
from tests.accuracy import check
from tests.positions.formulas import waves

BATCH, TOKENS, EMBED, LENGTH = 2, 7, 26, 13
ROWS = torch.tensor([[0, 1, 2, 3, 5, 8, 12], [12, 3, 3, 0, 1, 2, 11]])


def embeddings(dtype=torch.float32, tokens=TOKENS):
    return torch.randn(BATCH, tokens, EMBED).to(dtype)


class TestSinusoidal:
    """Vaswani et al. 2017, section 3.5."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("places", [None, ROWS, ROWS[:1] + 4099], ids=["from 0", "rows", "far"])
    def test_it_is_the_formula(self, places, dtype):
        x, where = embeddings(dtype), torch.arange(TOKENS)[None] if places is None else places
        wide = torch.promote_types(dtype, torch.float32)
        found = Sinusoidal(EMBED)(x, places)
        assert found.dtype == dtype
        exact, plain = x.double() + waves(where, EMBED), (x.to(wide) + waves(where, EMBED, wide)).to(dtype)
        check(found, exact, plain)
        for wrong in (Sinusoidal(EMBED)(x, where + 1), x + waves(where, EMBED).roll(1, -1).to(dtype)):
            with pytest.raises(AssertionError, match="error"):
                check(wrong, exact, plain)

    @pytest.mark.parametrize("conversions", [["bfloat16"], ["half", "float"]], ids=str)
    def test_frequencies_survive_conversion(self, conversions):
        x, far = embeddings(), ROWS + 100_003
        before, model = Sinusoidal(EMBED)(x, far), nn.Sequential(Sinusoidal(EMBED))
        for conversion in conversions:
            model = getattr(model, conversion)()
        assert torch.equal(model[0](x, far), before)
        assert not model.state_dict()

    def test_copies(self):
        waves, x = Sinusoidal(EMBED), embeddings()
        for copied in (copy.deepcopy(waves), pickle.loads(pickle.dumps(waves))):
            assert torch.equal(copied(x), waves(x))

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize(
        ("size", "error", "words"),
        [
            (25, ValueError, "embed_dim is 25, expected an even number: each sine has its cosine"),
            (0, ValueError, "embed_dim=0 is too small"),
            ("26", TypeError, "embed_dim='26' is a str"),
        ],
    )
    def test_sizes(self, size, error, words):
        with pytest.raises(error, match=words):
            Sinusoidal(size)


class TestLearned:
    """One vector a position."""

    def test_it_adds_rows_of_its_table(self):
        learned, x = Learned(LENGTH, EMBED), embeddings()
        table = learned.embedding.weight
        assert torch.equal(learned(x), x + table[:TOKENS])
        assert torch.equal(learned(x, ROWS), x + table[ROWS])
        assert torch.equal(learned(x, ROWS[:1]), x + table[ROWS[:1]])
        assert torch.equal(learned(embeddings(tokens=LENGTH) * 0)[0], table)
        assert not torch.equal(learned(x, ROWS), learned(x))

    def test_it_learns(self):
        learned = Learned(LENGTH, EMBED)
        learned(embeddings(), ROWS).sum().backward()
        counts = torch.bincount(ROWS.flatten(), minlength=LENGTH)
        assert torch.equal(learned.embedding.weight.grad, counts[:, None].float().expand(LENGTH, EMBED))

    def test_it_starts_small(self):
        assert Learned(1009, 101).embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)

    def test_types_and_devices(self):
        assert Learned(LENGTH, EMBED, dtype=torch.bfloat16)(embeddings(torch.bfloat16)).dtype == torch.bfloat16
        assert Learned(LENGTH, EMBED)(embeddings(torch.bfloat16)).dtype == torch.bfloat16
        nowhere = Learned(LENGTH, EMBED, device="meta")
        assert nowhere(embeddings().to("meta"), ROWS.to("meta")).is_meta

    @pytest.mark.parametrize(
        ("places", "number"), [(ROWS + 1, 13), (ROWS - 1, -1), (torch.full((1, TOKENS), 4099), 4099)]
    )
    def test_positions_that_it_does_not_know(self, places, number):
        with pytest.raises(
            ValueError, match=f"position {number} came, but Learned knows the positions 0 to 12: shorten"
        ):
            Learned(LENGTH, EMBED)(embeddings(), places)

    def test_too_many_tokens(self):
        with pytest.raises(ValueError, match=r"14 tokens came, but Learned knows the positions 0 to 12: .* max_length"):
            Learned(LENGTH, EMBED)(embeddings(tokens=LENGTH + 1))

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize(
        ("sizes", "error", "words"),
        [
            ((0, EMBED), ValueError, "max_length=0 is too small"),
            ((LENGTH, 0), ValueError, "embed_dim=0 is too small"),
            ((13.0, EMBED), TypeError, r"max_length=13.0 is a float"),
        ],
    )
    def test_sizes(self, sizes, error, words):
        with pytest.raises(error, match=words):
            Learned(*sizes)


@pytest.mark.parametrize(
    "make", [lambda: Sinusoidal(EMBED), lambda: Learned(LENGTH, EMBED)], ids=["sinusoidal", "learned"]
)
class TestBoth:
    """What they have in common."""

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize("places", [None, ROWS], ids=["from 0", "rows"])
    def test_compiled(self, make, places):
        module, x = make(), embeddings()
        assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x, places), module(x, places))

    def test_no_tokens(self, make):
        assert make()(embeddings(tokens=0)).shape == (BATCH, 0, EMBED)
        assert make()(embeddings(tokens=0), torch.zeros(1, 0, dtype=torch.int64)).shape == (BATCH, 0, EMBED)

    @pytest.mark.usefixtures("as_users_run")
    def test_what_does_not_fit(self, make):
        for x in (torch.zeros(TOKENS, EMBED), torch.zeros(BATCH, TOKENS, EMBED + 2)):
            with pytest.raises(ValueError, match=r"x has shape .*, expected \(batch, tokens, 26\)"):
                make()(x)
        with pytest.raises(ValueError, match=r"positions have shape \(2, 6\), expected \(2, 7\), or \(1, 7\)"):
            make()(embeddings(), ROWS[:, 1:])
        with pytest.raises(TypeError, match=r"positions have dtype torch.float32"):
            make()(embeddings(), ROWS.float())
