"""A base that does nothing, and constants that no conversion rounds."""

import copy
import pickle

import pytest
import torch
from torch import nn

from multihead import positions
from multihead.positions.base import Constant, check_positions

NUMBERS = (1.0, 0.1, 1 / 3)


def test_a_plain_position_does_nothing():
    plain = positions.Position()
    x = torch.randn(2, 3, 5, 4)
    plain.check(3, 4)
    assert plain.turn(x, torch.arange(5)[None]) is x
    assert plain.bias_between(None, None) is None


@pytest.mark.parametrize(
    ("conversions", "dtype"),
    [
        (["bfloat16"], torch.float32),
        (["half"], torch.float32),
        (["bfloat16", "float"], torch.float32),
        (["double"], torch.float64),
        (["half", "double"], torch.float64),
    ],
    ids=str,
)
def test_conversions_do_not_round(conversions, dtype):
    model = nn.Sequential(Constant(NUMBERS), nn.Linear(2, 2))
    for conversion in conversions:
        model = getattr(model, conversion)()
    assert model[1].weight.dtype == getattr(torch.zeros(()), conversions[-1])().dtype
    assert torch.equal(model[0].kept, torch.tensor(NUMBERS, dtype=dtype))


def test_a_plain_buffer_would_be_rounded():
    """What the class is for."""
    plain = nn.Module()
    plain.register_buffer("kept", torch.tensor(NUMBERS))
    assert not torch.equal(plain.bfloat16().float().kept, torch.tensor(NUMBERS))


def test_whole_numbers_stay_whole():
    kept = Constant([3, 1, 2], torch.int64).half().kept
    assert kept.dtype == torch.int64
    assert kept.tolist() == [3, 1, 2]


def test_empty_memory_is_filled():
    with torch.device("meta"):
        constant = Constant(NUMBERS)
    assert constant.kept.is_meta
    assert torch.equal(constant.to_empty(device="cpu").kept, torch.tensor(NUMBERS))


def test_on_gives_the_tensor_at_hand_or_another():
    constant = Constant(NUMBERS)
    cpu = torch.device("cpu")
    assert constant.on(cpu, torch.float32) is constant.kept
    assert torch.equal(constant.on(cpu, torch.float64), torch.tensor(NUMBERS, dtype=torch.float64))
    assert constant.on(torch.device("meta"), torch.float32).is_meta
    with torch.device("meta"):
        left_there = Constant(NUMBERS)
    assert torch.equal(left_there.on(cpu, torch.float32), torch.tensor(NUMBERS))


def test_copies_and_no_trace_in_checkpoints():
    constant = Constant(NUMBERS).double()
    for copied in (copy.deepcopy(constant), pickle.loads(pickle.dumps(constant))):
        assert copied.numbers == NUMBERS
        assert torch.equal(copied.kept, constant.kept)
    assert not constant.state_dict()
    assert repr(constant) == "Constant(3 numbers)"


@pytest.mark.usefixtures("as_users_run")
class TestRefusals:
    """Positions that belong to no tokens."""

    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            ([0, 1], TypeError, r"positions are a list, expected a tensor: torch.arange\(5\)\[None\]"),
            (torch.arange(5.0)[None], TypeError, "dtype torch.float32, expected torch.int64 or torch.int32"),
            (torch.zeros(1, 5, dtype=torch.uint8), TypeError, "dtype torch.uint8, expected"),
            (torch.zeros(1, 5, dtype=torch.bool), TypeError, "dtype torch.bool, expected"),
            (torch.arange(5), ValueError, r"shape \(5\), expected \(3, 5\), or \(1, 5\) for the whole batch"),
            (torch.zeros(2, 5, dtype=torch.int64), ValueError, r"shape \(2, 5\), expected \(3, 5\)"),
            (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"shape \(3, 1\), expected \(3, 5\)"),
            (torch.zeros(3, 5, dtype=torch.int64, device="meta"), ValueError, r"on meta, expected cpu: move .*'cpu'"),
        ],
    )
    def test_in_words(self, given, error, words):
        with pytest.raises(error, match=words):
            check_positions("positions", given, 3, 5, torch.device("cpu"))

    @pytest.mark.parametrize("rows", [1, 3])
    def test_what_fits_passes(self, rows):
        check_positions("positions", torch.zeros(rows, 5, dtype=torch.int32), 3, 5, torch.device("cpu"))
