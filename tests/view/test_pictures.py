import base64
import io
import json
import re

import numpy as np
import pytest
import torch

from multihead.recording import Recording, load
from multihead.view import Frames, Picture, page, write_page
from multihead.view.pictures import first_token, named
from multihead.view.served import Served
from multihead.view.server import opened
from tests.view.made import layer_of, made_call, recording_of
from tests.view.reader import Elements, Page

Image = pytest.importorskip("PIL.Image")


SAYS = {"picture", "seconds_per_frame", "spectrogram"}
"""What a text that is no words says in the document."""


def noise(height=7, width=11):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeing(tokens=13, *, named_tokens=False, batch=1):
    """A recording over 3 × 4 patches behind a class token."""
    layer = layer_of(made_call(queries=tokens, keys=tokens, batch=batch))
    texts = None if named_tokens else {"text": [[str(place) for place in range(tokens)]] * batch}
    return recording_of(layer, texts=texts)


def hearing():
    layer = layer_of(made_call(queries=5, keys=17), query_text="target", key_text="source")
    return recording_of(layer, texts={"target": [["a", "b", "c", "d", "e"]]})


def test_the_document_carries_the_picture():
    image = noise()
    document = Page(page(seeing(), pictures={"text": Picture(image, (3, 4))})).document
    (text,) = document["texts"]
    assert text["tokens"] == ["[CLS]", *(f"r{row}c{column}" for row in range(3) for column in range(4))]
    picture = text["picture"]
    assert (picture["grid"], picture["first"], picture["size"]) == ([3, 4], 1, [11, 7])
    head, _, body = picture["src"].partition(",")
    assert re.fullmatch(r"data:image/(png|jpeg);base64", head)
    assert Image.open(io.BytesIO(base64.b64decode(body, validate=True))).size == (11, 7)
    assert "seconds_per_frame" not in text
    assert document["start"]["token"] == 0


def test_a_page_without_pictures_says_nothing_of_them():
    assert not SAYS & set(Page(page(seeing())).document["texts"][0])


def test_the_policy_lets_pictures_of_the_page_in_and_no_others():
    elements = Elements(page(seeing(), pictures={"text": Picture(noise(), (3, 4))}))
    (policy,) = [
        attributes["content"]
        for tag, attributes, _ in elements.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["img-src"] == "data:"
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules


def test_frames_are_named_by_their_time():
    document = Page(page(hearing(), pictures={"source": Frames(0.02, np.eye(9, 34))})).document
    target, source = document["texts"]
    assert source["tokens"][:3] == ["0.00 s", "0.02 s", "0.04 s"]
    assert source["seconds_per_frame"] == 0.02
    assert source["spectrogram"]["size"] == [34, 9]
    assert target["tokens"] == ["a", "b", "c", "d", "e"]
    assert not SAYS & set(target)
    (_, plain) = Page(page(hearing(), pictures={"source": Frames(0.02)})).document["texts"]
    assert "spectrogram" not in plain


def test_tokens_that_have_names_keep_them():
    recording = seeing(named_tokens=True)
    assert named(recording, {"text": Picture(noise(), (3, 4))}).texts == recording.texts
    assert named(seeing(batch=3), {"text": Picture(noise(), (3, 4))}, 2).texts["text"][2][:2] == ["[CLS]", "r0c0"]
    assert named(recording, None) is recording
    later = recording_of(seeing().layers[0], texts={"text": [[str(place) for place in range(4, 17)]]})
    assert named(later, {"text": Picture(noise(), (3, 4))}).texts["text"][0][0] == "[CLS]"


def test_names_find_their_tokens():
    recording = named(seeing(), {"text": Picture(noise(), (3, 4))})
    assert list(recording.positions("r2c1")) == [10]
    assert recording.top("r2c1", count=1)[0].query == 10


@pytest.mark.parametrize(
    ("first", "last", "token"),
    [(1, 0, 0), (0, 1, 6), (0, 0, 6)],
)
def test_what_is_looked_at_first(first, last, token):
    recording = seeing(tokens=12 + first + last)
    pictures = {"text": Picture(noise(), (3, 4), first=first, last=last)}
    assert first_token(recording, pictures) == token
    assert Page(page(recording, pictures=pictures)).document["start"]["token"] == token
    assert Page(page(recording, pictures=pictures, start={"token": 2})).document["start"] == {"token": 2}


def test_words_are_looked_at_first_where_words_ask():
    assert first_token(hearing(), {"source": Picture(noise(), (4, 4))}) is None
    assert first_token(hearing(), None) is None


@pytest.mark.parametrize(
    ("pictures", "error", "sentence"),
    [
        (
            {"texts": Picture(None, (3, 4))},
            ValueError,
            "pictures has 'texts', but the texts of the recording are 'text'",
        ),
        (
            {"text": Picture(None, (3, 5))},
            ValueError,
            "3 × 5 patches with first=1 before them are 16 tokens, but .* 13",
        ),
        ({"text": Picture(None, (3, 4), 4)}, ValueError, r"say grid=\(3, 3\), or another grid of 9 patches"),
        ({"text": Picture(None, (3, 4), 1, 5)}, ValueError, "first=1 before them and 5 after them are 18 tokens"),
        ({"text": Picture(None, (3, 3), 0)}, ValueError, "say how many rows and columns"),
        ({"text": Picture(None, (3, 4))}, TypeError, "the image is None"),
        ({"text": Picture("none.png", (3, 4))}, FileNotFoundError, "none.png"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(pictures, error, sentence):
    for show in (page, lambda recording, pictures: Served(recording, pictures=pictures)):
        with pytest.raises(error, match=sentence):
            show(seeing(), pictures=pictures)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Picture(None, (0, 4)), ValueError, "grid is 0 × 4, expected at least one row"),
        (lambda: Picture(None, (3, 4), -1), ValueError, "first=-1 is negative"),
        (lambda: Picture(None, (3, 4), last=-2), ValueError, "last=-2 is negative"),
        (lambda: Frames(0.0), ValueError, "seconds_per_frame=0.0 is no length of time"),
        (lambda: Frames(-1.0), ValueError, "no length of time"),
        (lambda: Frames(float("nan")), ValueError, "no length of time"),
        (lambda: Frames(float("inf")), ValueError, "no length of time"),
    ],
)
def test_impossible_pictures_are_refused(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_without_pillow_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pictures need Pillow: pip install "multihead\[pictures\]"'):
        page(seeing(), pictures={"text": Picture("a.png", (3, 4))})
    page(hearing(), pictures={"source": Frames(0.02)})


def test_pages_are_written_with_pictures(tmp_path):
    write_page(seeing(), tmp_path / "a.html", pictures={"text": Picture(noise(), (3, 4))})
    assert Page((tmp_path / "a.html").read_text()).document["texts"][0]["picture"]["grid"] == [3, 4]


def _served_document(served: Served) -> dict:
    html = served.front.answer("").body.decode()
    return json.loads(Elements(html).text("script", id="multihead-document"))


def test_the_servers_document_carries_them(tmp_path):
    seeing().save(tmp_path / "run.safetensors")
    pictures = {"text": Picture(noise(), (3, 4))}
    asked = []

    def token(recording: Recording) -> str:
        asked.append(recording.texts["text"][0][1])
        return "r1c1"

    served = opened(tmp_path / "run.safetensors", pictures=pictures, token=token)
    document = _served_document(served)
    served.close()
    assert asked == ["r0c0"]
    assert document["texts"] == Page(page(seeing(), pictures=pictures)).document["texts"]
    assert document["start"]["token"] == 6
    plain = Served(seeing(), pictures=pictures)
    assert _served_document(plain)["start"]["token"] == 0
    plain.close()


def test_a_recording_stays_as_it_was(tmp_path):
    recording = seeing()
    page(recording, pictures={"text": Picture(noise(), (3, 4))})
    recording.save(tmp_path / "run.safetensors")
    assert load(tmp_path / "run.safetensors").texts["text"][0][:2] == ["0", "1"]


def test_whispers_words_over_the_time():
    from multihead import observe
    from tests.lens.families import speech, whisper

    inputs = {name: tensor[:1] for name, tensor in speech().items()}
    model = whisper()
    with torch.no_grad(), observe(model) as seen:
        model(**inputs)
    recording = seen.recording(tokens=["<s>", "the", "boat", "left", "."])
    read = Page(page(recording, pictures={"source": Frames(0.02, inputs["input_features"][0].numpy())}, item=0))
    by_name = {text["name"]: text for text in read.document["texts"]}
    assert by_name["source"]["tokens"][-1] == "0.24 s"
    assert by_name["source"]["spectrogram"]["size"] == [26, 7]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).cross_attentions
    crossing = [layer for layer in read.document["layers"] if layer["query_text"] != layer["key_text"]]
    assert len(crossing) == len(expected) == 2
    for layer, weights in zip(crossing, expected, strict=True):
        assert layer["keys"] == 13
        np.testing.assert_allclose(read.weights(layer), weights[0], atol=1e-5)
