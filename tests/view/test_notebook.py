"""A recording in a notebook, without one: what is handed over, and what a frame's questions are answered."""

import html
import json
import logging
import sys
import threading
import time
from html.parser import HTMLParser
from queue import Empty, Queue
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multihead import load, masks
from multihead.recording import Layer, Recording
from multihead.view import notebook
from multihead.view.entries import Data
from multihead.view.notebook import Answers, shown_in_notebook, widget
from multihead.view.page import html_of, page
from multihead.view.served import Served
from multihead.view.server import files_of
from multihead.web import Answer
from tests.accuracy import check
from tests.view.made import layer_of, made_call, recording_of, true_weights

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shell(monkeypatch):
    """No IPython; or, with ``shell()``, that of a terminal, and with ``shell(kernel=...)``, a notebook's."""

    def choose(**of_shell):
        monkeypatch.setattr(notebook, "_shell", lambda: SimpleNamespace(**of_shell))

    monkeypatch.setattr(notebook, "_shell", lambda: None)
    return choose


@pytest.fixture
def made(monkeypatch):
    """The widgets that were made by showing; they are closed."""
    found = []
    monkeypatch.setattr(notebook, "widget", lambda *given, **named: found.append(widget(*given, **named)) or found[-1])
    yield found
    for one in found:
        one.close()


@pytest.fixture
def small() -> Recording:
    return recording_of(layer_of(made_call(queries=11, keys=11)), provenance={"model": "Toy"})


class Tags(HTMLParser):
    """Every element that a text begins, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


class TestShown:
    def test_without_a_kernel_it_is_the_page_as_html(self, shell, small):
        data, metadata = small._repr_mimebundle_(include=None, exclude=None)
        assert (set(data), metadata) == ({"text/plain", "text/html"}, {})
        assert data["text/plain"] == repr(small)
        (frame, attributes), *rest = Tags(data["text/html"]).found
        assert frame == "iframe"
        assert attributes["sandbox"] == "allow-scripts"
        assert attributes["srcdoc"] == page(small, quotable=True)
        assert {tag for tag, _ in rest} == {"p"}
        assert html.escape(repr(small)) in data["text/html"]

    def test_a_terminal_gets_the_text_alone_and_makes_no_page(self, shell, small, monkeypatch):
        shell()
        monkeypatch.setattr(notebook, "page", lambda *_, **__: pytest.fail("a page for nobody"))
        assert shown_in_notebook(small) == ({"text/plain": repr(small)}, {})

    def test_a_kernel_gets_the_widget_beside_it(self, shell, small, made):
        shell(kernel=object())
        data, _ = shown_in_notebook(small)
        assert set(data) == {VIEW, "text/plain", "text/html"}
        (view,) = made
        assert data[VIEW]["model_id"] == view.model_id
        assert (view.page, view.state, view.height) == (page(small, quotable=True), "", notebook.HEIGHT)
        assert view.answers is None
        assert Tags(data["text/html"]).found[0][1]["srcdoc"] == view.page

    def test_without_anywidget_it_is_html(self, shell, small, monkeypatch):
        shell(kernel=object())
        monkeypatch.setattr(notebook, "find_spec", lambda _: None)
        assert set(shown_in_notebook(small)[0]) == {"text/plain", "text/html"}

    def test_a_page_too_large_to_be_saved_says_what_to_do(self, shell, small, monkeypatch):
        monkeypatch.setattr(notebook, "SAVED_PAGE", 1000)
        told = shown_in_notebook(small)[0]["text/html"]
        assert "larger than the 0 MB that a notebook keeps: run this cell where anywidget is installed" in told
        assert not [tag for tag, _ in Tags(told).found if tag == "iframe"]

    def test_one_that_asks_its_kernel_is_not_saved(self, shell, small, made, monkeypatch):
        shell(kernel=object())
        monkeypatch.setattr(notebook, "WHOLE_PAGE", 1000)
        data, _ = shown_in_notebook(small)
        assert "run this cell" in data["text/html"]
        assert "iframe" not in data["text/html"]
        assert data[VIEW]["model_id"] == made[0].model_id
        assert made[0].answers is not None

    def test_the_sentence_says_eight_megabytes(self):
        assert notebook._static("told", None).startswith("<p>told</p><p>Its page is larger than the 8 MB")

    @pytest.mark.parametrize("kernel", [False, True])
    def test_where_there_is_nothing_to_show_it_says_why(self, shell, small, kernel):
        if kernel:
            shell(kernel=object())
        unkept = recording_of(layer_of(made_call(queries=11, keys=11)))
        layer = Layer(**{**vars(unkept.layers[0]), "q": None, "k": None})
        for recording, why in (
            (Recording((), {}), "the recording holds no layer, so there is nothing to show"),
            (Recording((layer,), unkept.texts), "layer 0 holds no queries and keys"),
        ):
            data, metadata = shown_in_notebook(recording)
            assert (set(data), metadata) == ({"text/plain", "text/html"}, {})
            assert data["text/plain"] == repr(recording)
            assert why in data["text/html"]
            assert {tag for tag, _ in Tags(data["text/html"]).found} == {"p"}

    def test_hostile_texts_stay_inside_the_attribute(self, shell):
        evil = [
            '"></iframe><script>alert(1)</script>',
            "'><img src=x onerror=alert(2)>",
            "</iframe>",
            "&quot;>",
            "\ud800",
        ]
        texts = {"text": [evil + [""] * 6]}
        hostile = {"model": '"></iframe><script>alert(3)</script>', '"><b>': "</iframe>"}
        recording = recording_of(layer_of(made_call(queries=11, keys=11)), texts=texts, provenance=hostile)
        text = shown_in_notebook(recording)[0]["text/html"]
        (frame, attributes), *rest = Tags(text).found
        assert (frame, {tag for tag, _ in rest}) == ("iframe", {"p"})
        assert set(attributes) == {"sandbox", "title", "style", "srcdoc"}
        assert attributes["srcdoc"] == page(recording, quotable=True)
        assert text.count("</iframe") == 1
        assert text.encode()

    def test_the_check_for_hostile_texts_would_notice(self):
        assert [tag for tag, _ in Tags('<iframe srcdoc=""></iframe><script>alert(1)</script>"></iframe>').found] == [
            "iframe",
            "script",
        ]

    def test_ipython_is_asked_only_where_it_is_loaded(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
        assert notebook._shell() is None
        assert "IPython" not in sys.modules
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: "the shell"))
        assert notebook._shell() == "the shell"


class TestWidget:
    def test_arguments_reach_the_page(self):
        recording = recording_of(layer_of(made_call(batch=2, queries=11, keys=11)))
        start = {"layer": 0, "heads": [2], "text": 0, "token": 3}
        made = widget(recording, start=start, item=1, title="Mine", height=300)
        assert made.page == page(recording, start=start, item=1, title="Mine", quotable=True)
        assert made.height == 300
        made.close()

    @pytest.mark.parametrize("text", ["#layer=0&heads=1", ""])
    def test_what_is_sent_is_what_is_said(self, small, text):
        made = widget(small)
        made.state = text
        sent = made.get_state()
        assert {name: sent[name] for name in ("page", "state", "height")} == {
            "page": page(small, quotable=True),
            "state": text,
            "height": 720,
        }
        assert "export" in sent["_esm"]
        made.close()

    def test_the_page_is_only_read(self, small):
        from traitlets import TraitError

        made = widget(small)
        with pytest.raises(TraitError, match="read-only"):
            made.page = "<script>"
        with pytest.raises(TraitError, match="height"):
            made.height = 0
        made.close()

    def test_heights_that_are_none(self, small):
        with pytest.raises(ValueError, match="height=0 leaves no room: say how many pixels, for example height=720"):
            widget(small, height=0)

    def test_an_item_that_is_not_there(self, small):
        with pytest.raises(ValueError, match="item=3 out of range"):
            widget(small, item=3)

    def test_without_anywidget(self, small, monkeypatch):
        monkeypatch.setitem(sys.modules, "anywidget", None)
        notebook._widget_class.cache_clear()
        with pytest.raises(ImportError, match=r"made with anywidget: pip install 'multihead\[notebook\]'"):
            widget(small)

    def test_a_large_one_holds_the_document_and_answers(self, small, monkeypatch):
        monkeypatch.setattr(notebook, "WHOLE_PAGE", 1000)
        before = threading.active_count()
        made = widget(small, start={"layer": 0, "heads": [1], "token": 4})
        assert '"source":{"kind":"frame"}' in made.page
        assert '"start":{"layer":0,"heads":[1],"token":4}' in made.page
        assert len(made.page) < len(page(small, quotable=True))
        sent = Queue()
        made.send = made.answers._send = lambda content, buffers: sent.put((content, buffers))
        made._handle_custom_msg({"kind": "ask", "id": 5, "name": "row", "parameters": ROW}, [])
        assert sent.get(timeout=60)[0] == {"id": 5}
        made.close()
        assert threading.active_count() == before
        made.close()

    def test_one_that_holds_its_page_heeds_no_question(self, small):
        made = widget(small)
        made._handle_custom_msg({"kind": "ask", "id": 5, "name": "row", "parameters": ROW}, [])
        made.close()


ROW = {"layer": "0", "heads": "0,2", "query": "4"}


class Asked:
    """Answers with a list of what they send."""

    def __init__(self, served: Served) -> None:
        self.sent: Queue = Queue()
        self.answers = Answers(served, lambda content, buffers: self.sent.put((content, buffers)))
        self.count = 0

    def ask(self, name: object, parameters: object) -> int:
        self.count += 1
        self.answers.received({"kind": "ask", "id": self.count, "name": name, "parameters": parameters})
        return self.count

    def answer(self, name: object, **parameters: object):
        """The bytes of an answer, or its error."""
        number = self.ask(name, {key: str(value) for key, value in parameters.items()})
        return self.reply(number)

    def reply(self, number: int):
        content, buffers = self.sent.get(timeout=30)
        assert content["id"] == number
        assert ("error" in content) == (buffers == [])
        return content.get("error") or buffers[0]

    def nothing(self) -> bool:
        with pytest.raises(Empty):
            self.sent.get(timeout=0.3)
        return True


@pytest.fixture
def asking():
    """Ask what is served; what runs is ended."""
    made = []

    def ask(served: Served | Recording) -> Asked:
        made.append(Asked(served if isinstance(served, Served) else Served(served, kind="frame")))
        return made[-1]

    yield ask
    for one in made:
        one.answers.close()


def numbers(answer: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(answer, "<f4").copy())


class TestAnswers:
    CALL = made_call(queries=13, keys=11, heads=3, spread=2.0, mask=masks.causal())

    def served(self, **options) -> Recording:
        return recording_of(layer_of(self.CALL, query_text="target", key_text="source", **options))

    def test_are_the_formulas_numbers(self, asking):
        exact = torch.from_numpy(true_weights(self.CALL))
        plain = exact.float()
        asked = asking(self.served())
        row = numbers(asked.answer("row", layer=0, heads="2,0", query=4)).view(2, 11)
        check(row, exact[[2, 0], 4], plain[[2, 0], 4], "row")
        column = numbers(asked.answer("column", layer=0, heads="1", key=7))
        check(column, exact[1, :, 7], plain[1, :, 7], "column")
        tile = numbers(asked.answer("tile", layer=0, head=1, z=0, y=0, x=0, pooling="mean")).view(13, 11)
        check(tile, exact[1], plain[1], "tile")
        partners = json.loads(asked.answer("partners", text=0, token=4, direction="out"))
        assert [(link["layer"], link["head"], link["token"]) for link in partners] == [
            (0, head, int(exact[head, 4].argmax())) for head in range(3)
        ]
        with pytest.raises(AssertionError, match="error"):
            check(tile, exact[2], plain[2], "tile")

    @pytest.mark.parametrize(
        ("name", "parameters", "sentence"),
        [
            ("", {}, "Nothing answers to '' here."),
            ("multihead.js", {}, "Nothing answers to 'multihead.js' here."),
            ("../tile", {}, "Nothing answers to '../tile' here."),
            (None, {}, "Nothing answers to 'None' here."),
            (["tile"], {}, "Nothing answers to \"['tile']\" here."),
            ("row", None, "The parameters are no object of text to text."),
            ("row", [["layer", "0"]], "The parameters are no object of text to text."),
            ("row", {"layer": 0}, "The parameters are no object of text to text."),
            ("row", {}, "The parameter layer is missing."),
            ("row", ROW | {"layer": "-1"}, "The parameter layer has '-1', expected a whole number."),
            ("row", ROW | {"layer": "1"}, "There is no layer at place 1: there are 1, counted from 0."),
            ("row", ROW | {"query": "13"}, "The query at position 13 was not recorded in layer 0."),
            ("row", ROW | {"heads": "7"}, "Head 7 of layer 0 was not recorded: its heads are 0 to 2."),
        ],
    )
    def test_refuse_with_a_sentence(self, asking, name, parameters, sentence):
        asked = asking(self.served())
        assert asked.reply(asked.ask(name, parameters)).startswith(sentence)

    @pytest.mark.parametrize(
        "message",
        [
            None,
            "ask",
            {},
            {"kind": "ask"},
            {"kind": "ask", "id": "1", "name": "row", "parameters": ROW},
            {"kind": "ask", "id": 1.0, "name": "row", "parameters": ROW},
            {"kind": "ask", "id": True, "name": "row", "parameters": ROW},
            {"kind": "ask", "id": -1, "name": "row", "parameters": ROW},
            {"kind": "ask", "id": 2**53, "name": "row", "parameters": ROW},
            {"kind": "tell", "id": 1},
        ],
        ids=str,
    )
    def test_what_is_no_question_is_logged(self, asking, caplog, message):
        asked = asking(self.served())
        asked.answers.received(message)
        assert asked.nothing()
        assert "which is no question" in caplog.text

    def test_a_question_taken_back_ends(self, asking):
        served = Waiting()
        asked = asking(served)
        first, second = asked.ask("row", ROW), asked.ask("row", ROW)
        assert [served.seen.get(timeout=60) for _ in range(2)] == ["begun", "begun"]
        asked.answers.received({"kind": "drop", "id": first})
        assert served.seen.get(timeout=60) == "ended"
        asked.answers.received({"kind": "drop", "id": first})
        asked.answers.received({"kind": "drop", "id": 99})
        assert asked.nothing()
        asked.answers.received({"kind": "drop", "id": second})
        assert served.seen.get(timeout=60) == "ended"

    def test_a_question_asked_twice_is_answered_once(self, asking, caplog):
        served = Waiting()
        asked = asking(served)
        question = {"kind": "ask", "id": asked.ask("row", ROW), "name": "row", "parameters": ROW}
        assert served.seen.get(timeout=60) == "begun"
        asked.answers.received(question)
        assert "was asked question 1 twice" in caplog.text
        with pytest.raises(Empty):
            served.seen.get(timeout=0.3)

    def test_a_number_can_be_used_again(self, asking):
        asked = asking(self.served())
        question = {"kind": "ask", "id": 1, "name": "row", "parameters": ROW}
        for _ in range(2):
            asked.answers.received(question)
            assert len(asked.reply(1)) == 2 * 11 * 4
            until(lambda: not asked.answers._asked)

    def test_a_failure_is_told_and_logged(self, asking, caplog):
        asked = asking(Failing())
        assert asked.reply(asked.ask("row", ROW)) == "The kernel failed at this: its log says how."
        assert "broken inside" in caplog.text

    def test_an_answer_that_cannot_be_sent_is_logged(self, caplog):
        def send(content: dict[str, object], buffers: list[bytes]) -> None:
            raise ConnectionError("nobody there")

        answers = Answers(Served(self.served(), kind="frame"), send)
        with caplog.at_level(logging.ERROR):
            answers.received({"kind": "ask", "id": 1, "name": "row", "parameters": ROW})
            until(lambda: "nobody there" in caplog.text)
        answers.close()

    def test_closing_ends_what_waits(self, asking):
        served = Waiting()
        asked = asking(served)
        asked.ask("row", ROW)
        assert served.seen.get(timeout=60) == "begun"
        asked.answers.close()
        assert served.seen.get(timeout=60) == "ended"
        asked.answers.close()

    def test_a_file_that_was_changed_is_not_read(self, asking, tmp_path):
        path = tmp_path / "run.safetensors"
        self.served().save(path)
        recording = load(path)
        asked = asking(Served(recording, kind="frame", watched=files_of(recording)))
        assert len(asked.answer("row", **ROW)) == 2 * 11 * 4
        self.served(heads=[0, 2]).save(path)
        assert asked.answer("row", **ROW) == "run.safetensors has been changed since it was opened: open it again."


def until(true) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


class Waiting(Served):
    """Answers nothing until the question is taken back."""

    def __init__(self) -> None:
        self.seen: Queue = Queue()

    async def answer(self, name, parameters, gone) -> Answer:
        import asyncio

        self.seen.put("begun")
        try:
            await asyncio.sleep(60)
        finally:
            self.seen.put("ended")
        raise AssertionError("nobody took the question back")

    def close(self) -> None:
        pass


class Failing(Waiting):
    async def answer(self, name, parameters, gone) -> Answer:
        raise RuntimeError("broken inside")


def test_the_frame_document_asks_and_carries_no_data():
    served = Served(recording_of(layer_of(made_call(queries=11, keys=11))), kind="frame")
    text = html_of(served.document, Data())
    served.close()
    assert served.document["source"] == {"kind": "frame"}
    assert served.document["layers"][0]["q"] is None
    assert "default-src 'none'" in text
    assert "<script src" not in text
    assert "<link" not in text
