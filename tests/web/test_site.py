"""A site whose page is answered before all that answers is open."""

import http.client
import json
import threading
import time
from urllib.parse import urlsplit

import pytest

from multihead.errors import RecordingError
from multihead.web import Answer, Refusal, Site


class Early:
    last = "script"

    def answer(self, name):
        if name == "refused":
            raise Refusal(409, "Not any more.")
        return Answer(b"early " + name.encode(), "text/plain") if name in ("", "script") else None


class Late:
    def __init__(self):
        self.closed = False

    async def answer(self, name, parameters, gone):
        return Answer(b"late " + name.encode(), "text/plain")

    def close(self):
        self.closed = True


def get(url, name=""):
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    try:
        connection.request("GET", where.path + name)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def gate():
    """What the rest waits for."""
    return threading.Event()


def opening(gate, given, content):
    def rest(front):
        given.append(front)
        assert gate.wait(20)
        return content

    return rest


def test_the_page_is_answered_before_the_rest_which_waits(gate):
    given, content, early, answers = [], Late(), Early(), []
    with Site(opening(gate, given, content), first=lambda: early).running() as url:
        assert get(url) == (200, "early ")
        assert get(url, "refused") == (409, '{"error":"Not any more."}')
        asking = threading.Thread(target=lambda: answers.append(get(url, "tile")))
        asking.start()
        assert get(url, "script") == (200, "early script")
        assert not answers
        gate.set()
        asking.join(20)
        assert answers == [(200, "late tile")]
        assert get(url) == (200, "late "), "all is open"
        assert given == [early]
    assert content.closed


@pytest.mark.parametrize("asked", ["script", "tile", None], ids=["the last", "something else", "nothing"])
def test_when_the_rest_is_opened(gate, asked, monkeypatch):
    monkeypatch.setattr("multihead.web.site._CALM", 0.3 if asked is None else 60.0)
    given = []
    gate.set()
    with Site(opening(gate, given, Late()), first=Early).running() as url:
        assert get(url) == (200, "early ")
        assert not given, "whoever has the page asks for its script"
        if asked is not None:
            get(url, asked)
        for _ in range(1000):
            if given:
                break
            time.sleep(0.01)
        assert len(given) == 1


def test_without_a_front_all_waits(gate):
    answers = []
    with Site(opening(gate, [], Late()), first=lambda: None).running() as url:
        asking = threading.Thread(target=lambda: answers.append(get(url)))
        asking.start()
        time.sleep(0.1)
        assert not answers
        gate.set()
        asking.join(20)
    assert answers == [(200, "late ")]


def test_who_asks_is_told_why_the_rest_was_not_opened():
    answers, failing = [], threading.Event()

    def rest(front):
        failing.set()
        time.sleep(0.3)
        raise RecordingError("run.safetensors is a damaged recording.")

    site = Site(rest, first=Early)
    asking = threading.Thread(target=lambda: answers.extend((get(site.url), get(site.url, "tile"))))
    asking.start()
    with pytest.raises(RecordingError, match="damaged"):
        site.run()
    asking.join(20)
    assert failing.is_set()
    assert answers[0] == (200, "early ")
    status, body = answers[1]
    assert (status, json.loads(body)["error"]) in (
        (500, "run.safetensors is a damaged recording."),
        (503, "The server is ending."),
    )


def test_a_first_that_fails_ends_the_site():
    def first():
        raise RecordingError("no page")

    with pytest.raises(RecordingError, match="no page"):
        Site(lambda front: Late(), first=first).run()


def test_a_site_that_ends_before_anything_was_asked_opens_nothing(monkeypatch):
    monkeypatch.setattr("multihead.web.site._CALM", 60.0)
    given = []
    begun = time.monotonic()
    with Site(given.append, first=Early).running() as url:
        assert get(url) == (200, "early ")
    assert time.monotonic() - begun < 20
    assert not given
