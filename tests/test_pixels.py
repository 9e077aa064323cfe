import base64
import io
import os

import numpy as np
import pytest

from multihead.pixels import LARGEST_SIDE, as_address, as_picture, as_spectrogram, frame_names, patch_names

Image = pytest.importorskip("PIL.Image")


def noise(height=7, width=11, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_back(address):
    head, _, body = address.partition(",")
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(body, validate=True))))


def test_the_same_picture_from_every_form(tmp_path):
    pixels = noise()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [pixels, pixels / 255, (pixels / 255).astype(np.float32), Image.fromarray(pixels), tmp_path / "a.png"]
    for form in (*forms, os.fspath(tmp_path / "a.png"), pixels[::-1][::-1]):
        np.testing.assert_array_equal(np.asarray(as_picture(form)), pixels)


def test_a_file_is_turned_as_its_camera_says(tmp_path):
    pixels = noise()
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(as_picture(tmp_path / "turned.png")), np.rot90(pixels, -1))


def test_grey_and_transparent_pictures_become_colours():
    assert np.asarray(as_picture(Image.new("L", (5, 3), 77))).tolist() == [[[77] * 3] * 5] * 3
    assert as_picture(Image.new("RGBA", (5, 3), (1, 2, 3, 0))).mode == "RGB"


@pytest.mark.parametrize(
    ("image", "error", "sentence"),
    [
        (np.zeros((3, 5, 7), np.uint8), ValueError, r"shape \(3, 5, 7\), expected \(height, width, 3\)"),
        (np.zeros((5, 7), np.uint8), ValueError, "colours come last"),
        (np.zeros((0, 7, 3), np.uint8), ValueError, "has no pixel"),
        (np.zeros((5, 7, 3), np.int64), ValueError, "dtype int64, expected uint8"),
        (np.full((5, 7, 3), 2.5), ValueError, "numbers from 2.5 to 2.5.*normalisation"),
        (np.full((5, 7, 3), -0.1), ValueError, "fractions from 0 to 1"),
        (np.full((5, 7, 3), np.nan), ValueError, "fractions from 0 to 1"),
        ([[1, 2, 3]], TypeError, "the image is a list, expected a picture of Pillow's, an array or a path"),
        (None, TypeError, "the image is None"),
    ],
)
def test_what_is_no_picture_is_refused(image, error, sentence):
    with pytest.raises(error, match=sentence):
        as_picture(image)


def test_files_that_are_no_pictures_are_refused(tmp_path):
    (tmp_path / "words.png").write_text("these are words")
    with pytest.raises(ValueError, match=r"words\.png is no picture that Pillow can read"):
        as_picture(tmp_path / "words.png")
    Image.fromarray(noise(64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture"):
        as_picture(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError):
        as_picture(tmp_path / "none.png")


def test_a_spectrogram_is_grey_with_low_notes_below():
    drawn = np.asarray(as_spectrogram(np.array([[-3.0, 0.0, 1.0], [-1.0, -1.0, -3.0]])))
    assert drawn[..., 0].tolist() == [[128, 128, 0], [0, 191, 255]]
    assert (drawn[..., 0] == drawn[..., 2]).all()
    assert np.asarray(as_spectrogram(np.ones((2, 3), np.float32))).max() == 0
    np.testing.assert_array_equal(np.asarray(as_spectrogram(noise())), noise())
    for wrong in (np.zeros((0, 3)), np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])):
        with pytest.raises(ValueError, match="empty or holds NaN or inf"):
            as_spectrogram(wrong)


def test_the_smaller_of_two_formats():
    plain = Image.fromarray(np.full((300, 200, 3), 90, np.uint8))
    address, size = as_address(plain)
    head, pixels = read_back(address)
    assert (head, size) == ("data:image/png;base64", (200, 300))
    np.testing.assert_array_equal(pixels, np.asarray(plain))
    smooth = np.linspace(0, 255, 400)[None, :, None] + 20 * np.sin(np.arange(300))[:, None, None] + np.zeros(3)
    head, pixels = read_back(
        as_address(Image.fromarray((smooth + noise(300, 400) % 9).clip(0, 255).astype(np.uint8)))[0]
    )
    assert head == "data:image/jpeg;base64"
    assert pixels.shape == (300, 400, 3)


@pytest.mark.parametrize(
    ("size", "keep", "expected"),
    [
        ((2048, 1024), True, (1024, 512)),
        ((512, 4096), True, (128, 1024)),
        ((1024, 1024), True, (1024, 1024)),
        ((3000, 80), True, (1024, 27)),
        ((3000, 80), False, (1024, 80)),
        ((5000, 1), True, (1024, 1)),
    ],
)
def test_large_pictures_become_smaller(size, keep, expected):
    address, found = as_address(Image.new("RGB", size), keep_shape=keep)
    assert found == expected
    assert read_back(address)[1].shape == (expected[1], expected[0], 3)
    assert max(found) <= LARGEST_SIDE


def test_names():
    assert patch_names((2, 3), 0) == ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"]
    assert patch_names((1, 2), 3, 2) == ["[CLS]", "[REG1]", "[REG2]", "r0c0", "r0c1", "[5]", "[6]"]
    assert frame_names(3, 0.5) == ["0.00 s", "0.50 s", "1.00 s"]
    assert frame_names(2, 0.0125) == ["0.00 s", "0.01 s"]
    for seconds in (0.02, 0.0125, 0.01, 0.003, 0.0004, 7.0):
        assert len(set(frame_names(1500, seconds))) == 1500
