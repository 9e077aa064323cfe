import numpy as np
import pytest
import torch

from multihead.front.document import CELLS, quantised, shrunk


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 50), (3, 47, 48), (1, 48, 49), (2, 97, 131), (1, 2048, 53)])
def test_an_overview_has_the_bins_of_torchs_pooling(shape, dtype):
    blocks = np.random.default_rng(0).random(shape).astype(dtype)
    cells = min(CELLS, shape[1]), min(CELLS, shape[2])
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(blocks).double(), cells).numpy()
    found = shrunk(blocks)
    assert (found.dtype, found.shape) == (np.float64, (shape[0], *cells))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bins_that_end_a_block_early_would_be_noticed():
    blocks = np.arange(49.0)[None, None].repeat(49, 1)
    assert shrunk(blocks)[0, 0].tolist() == [place + 0.5 for place in range(48)]


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 3, 0), (0, 3, 3)])
def test_an_overview_of_nothing(shape):
    cells, peaks = quantised(shrunk(np.zeros(shape, np.float32)))
    assert (cells.shape, cells.dtype) == (shape, np.uint8)
    assert peaks.tolist() == [0.0] * shape[0]


def test_what_is_no_number_is_no_warning():
    blocks = np.array([[[np.nan, 1.0], [np.inf, -np.inf]], [[0.0, 0.0], [0.25, 1.0]]])
    assert quantised(shrunk(blocks))[0][1].tolist() == [[0, 0], [128, 255]]


def test_cells_are_fractions_of_their_heads_peak():
    cells, peaks = quantised(np.array([[[0.0, 0.25], [1.0, -1e-9]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert cells.tolist() == [[[0, 128], [255, 0]], [[0, 0], [0, 0]]]
    assert (peaks.tolist(), peaks.dtype) == ([1.0, 0.0], np.float32)
