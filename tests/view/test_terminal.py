import io
import re

import pytest
from rich.console import Console

from multihead.errors import RecordingError, SourceError
from multihead.recording.words import is_mark
from multihead.view.opening import likely_token, start, telling_link
from multihead.view.terminal import bar, links_table, shaded, summary
from tests.view.made import layer_of, made_call, recording_of


def printed(renderable, *, width=80, colour=None, **options):
    file = io.StringIO()
    Console(
        file=file, width=width, color_system=colour, force_terminal=colour is not None, highlight=False, **options
    ).print(renderable)
    return file.getvalue()


def pointing(*targets, heads=1, keys=None, sharp=9.0, **options):
    """One layer whose query i looks at key targets[i]."""
    count = len(targets)
    call = made_call(heads=heads, queries=count, keys=keys or count, dim=max(count, keys or count), scale=1.0)
    call.q.zero_()
    call.k.zero_()
    for query, key in enumerate(targets):
        call.q[0, :, query, query] = sharp
        call.k[0, :, key, query] = 1.0
    return layer_of(call, **options)


TOKENS = ["[CLS]", "the", "govern", "##ments", "act", ",", "slowly", "[SEP]"]
LAYER = pointing(0, 6, 0, 2, 2, 4, 4, 0)


def recording(layer=LAYER, tokens=TOKENS):
    return recording_of(layer, texts={"text": [tokens]})


def test_summary():
    text = printed(summary(recording(), "act"))
    assert text.startswith("act looks at")
    looks, looked, sees = text.split("\n\n")[:3]
    assert looks.splitlines()[2].split()[:5] == ["0", "0", "govern", "2", "0.999"]
    assert looked.splitlines()[0].startswith("act is looked at by")
    assert "slowly" in looked
    assert sees.splitlines()[0] == "what act sees in layer 0 head 0"
    assert "[CLS] the govern(100%)ments act , slowly [SEP]" in sees
    assert "special tokens and punctuation are left out" in text
    assert "\x1b" not in text


def test_faint_links_are_left_out():
    assert not re.search(r"0\.00\d", printed(summary(recording(), "act")))
    even = made_call(heads=1, queries=401, keys=401, scale=0.0)
    made = recording_of(layer_of(even), texts={"text": [[f"w{place}" for place in range(401)]]})
    assert "0.002" in printed(summary(made, "w7")), "but the strongest is always there"


def test_marks_are_listed_on_request():
    without, everything = (printed(summary(recording(), "act", marks=marks)) for marks in (False, True))
    assert "left out" not in everything
    assert everything.split("\n\n")[1].splitlines()[2].split()[2] == ","
    assert "\n    0     0  ,  " not in without


def test_a_token_that_occurs_twice_says_which():
    text = printed(summary(recording(tokens=["the", "cat", "the", "cat", "sat", "on", "the", "mat"]), "cat"))
    assert text.splitlines()[1].split() == ["layer", "head", "from", "token", "at", "weight", "kind"]


def test_a_position_names_its_token():
    assert printed(summary(recording(), 6)).startswith("slowly looks at")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_keep_within_the_width(width):
    tokens = ["a" * 30, "b" * 60, *TOKENS[2:]]
    text = printed(summary(recording(tokens=tokens), "b" * 60), width=width)
    assert max(len(line) for line in text.splitlines()) <= width


def test_colour_shades_by_weight():
    text = printed(summary(recording(), "act"), colour="256")
    assert "\x1b[37;48;5;25mgovern" in text
    without = printed(summary(recording(), "act"), colour="256", no_color=True)
    assert not set(re.findall(r"\x1b\[([\d;]+)m", without)) - {"0", "1", "2", "1;2"}, "bold and dim are no colours"


EVIL = ["\x1b[31mred", "[bold]x[/bold]", "[/]", "a\nb", "\u202eabc", "\x07", "\ud800", "\r", "👩\u200d👧", "שלום", ""]


@pytest.mark.parametrize("evil", EVIL)
def test_tokens_are_data(evil):
    tokens = [evil, *TOKENS[1:]]
    layer = pointing(1, 0, 0, 2, 0, 4, 1, 0)
    for colour in (None, "256"):
        text = printed(summary(recording(layer, tokens), "act", marks=True), colour=colour)
        for character in ("\x1b[31m", "\u202e", "\x07", "\ud800", "\r"):
            assert character not in text
        text.encode("utf-8")
    plain = printed(links_table(recording(layer, tokens).top("act", count=1)))
    assert len(plain.splitlines()) == 2
    if evil.startswith("["):
        assert evil in plain


def test_long_texts_are_shown_where_it_matters():
    count = 401
    call = made_call(heads=1, queries=1, keys=count, dim=3, scale=1.0)
    call.q.zero_()
    call.k.zero_()
    call.q[0, 0, 0, 0], call.k[0, 0, 200, 0] = 20.0, 1.0
    made = recording_of(layer_of(call), texts={"text": [[f"w{place}" for place in range(count)]]})
    line = printed(shaded(made, made.top("w400", count=1)[0])[1], width=10_000)
    assert line.split() == [
        "[...]",
        *(f"w{place}" for place in range(192, 200)),
        "w200(100%)",
        *(f"w{place}" for place in range(201, 209)),
        "[...]",
    ]


def test_even_rows_of_a_long_text_show_something():
    call = made_call(heads=1, queries=401, keys=401, scale=0.0)
    made = recording_of(layer_of(call), texts={"text": [[f"w{place}" for place in range(401)]]})
    assert "w0 w1" in printed(shaded(made, made.top("w7", count=1)[0])[1])


def test_two_texts():
    own = pointing(1, 0, 2, query_text="target", key_text="target", index=0)
    cross = pointing(3, 1, 2, keys=5, query_text="target", key_text="source", index=1)
    made = recording_of(
        own, cross, texts={"target": [["ich", "sah", "sie"]], "source": [["I", "saw", "her", "there", "once"]]}
    )
    text = printed(summary(made, "ich"))
    assert "there" in text
    assert "what ich sees in layer 1 head 0" in text
    only_seen = printed(summary(made, "saw"))
    assert only_seen.startswith("saw is looked at by")
    assert "sah" in only_seen


def test_what_is_not_there():
    with pytest.raises(SourceError, match=r"'goverments' is not among the 8 tokens: did you mean governments"):
        summary(recording(), "goverments")
    with pytest.raises(RecordingError, match="layer 4 was not recorded"):
        summary(recording(), "act", layers=[4])


def test_bar():
    assert [bar(weight) for weight in (0.0, 0.5, 1.0, 1.1)] == ["", "█████", "██████████", "██████████"]
    assert bar(0.55) == "█████▌"
    assert bar(0.55, plain=True) == "######"
    assert bar(1.0, plain=True).isascii()


def test_likely_token_is_the_longest_word():
    assert likely_token(recording()) == 2, "governments, in two pieces"
    assert likely_token(recording(tokens=["[UNUSED_AND_LONG]", "a", "bb", "cc", ".", ",", "d", "e"])) == 2
    assert likely_token(recording_of(LAYER, texts={})) == 0
    some = recording_of(layer_of(made_call(queries=8, keys=8), queries=(4, 6)), texts={"text": [TOKENS]})
    assert likely_token(some) == 6, "among those whose queries were recorded"


@pytest.mark.parametrize(
    ("token", "mark"),
    [(token, True) for token in ("[CLS]", "<s>", "<|endoftext|>", ".", "Ġ,", "", "[]")]
    + [(token, False) for token in ("##s", "Ġword", "7", "שלום", "<b")],
)
def test_marks(token, mark):
    assert is_mark(token) is mark


def test_the_telling_link_is_no_matter_of_position():
    layers = [pointing(*targets, index=index, sharp=sharp) for index, (targets, sharp) in enumerate([
        ([0, 1, 1, 2, 3, 4, 5, 6], 9.0),  # the token before
        ([0] * 8, 8.0),  # [CLS]
        ([0, 6, 0, 2, 1, 4, 1, 0], 4.0),  # a word further off
    ])]  # fmt: skip
    made = recording_of(*layers, texts={"text": [TOKENS]})
    links = made.top("act", count=50)
    assert (links[0].layer, telling_link(links, made).layer) == (0, 2)
    assert telling_link([], made) is None
    near = recording_of(layers[0], texts={"text": [TOKENS]})
    assert telling_link(near.top("act", count=50), near).key == 3


def test_start_of_a_page():
    assert start(recording(), "slowly") == {"layer": 0, "heads": [0], "text": 0, "token": 6}
    assert start(recording())["token"] == 2
    assert start(recording(), 4)["token"] == 4
    with pytest.raises(SourceError, match="'slow' is not among the 8 tokens: did you mean slowly"):
        start(recording(), "slow")


def test_start_of_a_page_with_two_texts():
    own = pointing(1, 0, 2, query_text="source", key_text="source", index=0)
    cross = pointing(2, 1, query_text="target", key_text="source", keys=3, index=1)
    made = recording_of(own, cross, texts={"target": [["ja", "nein"]], "source": [["yes", "no", "maybe"]]})
    assert start(made, "ja") == {"layer": 1, "heads": [0], "text": 1, "token": 0}
    assert start(made, "maybe") == {"layer": 0, "heads": [0], "text": 0, "token": 2}
    assert start(made)["token"] == 1


def test_a_recording_without_tokens_can_be_shown():
    made = recording_of(LAYER, texts={})
    assert start(made) == {"layer": 0, "heads": [0], "text": 0, "token": 0}
    assert "looks at" in printed(summary(made, 4))


def test_chosen_queries_only():
    call = made_call(heads=2, queries=8, keys=8, spread=2.0)
    made = recording_of(layer_of(call, queries=(2, 4)), texts={"text": [TOKENS]})
    assert start(made, "act")["token"] == 4
    assert start(made, "slowly") == {"text": 0, "token": 6}
    assert printed(summary(made, "slowly")).count("looked at by") == 1


def test_nothing_is_printed(capfd):
    summary(recording(), "act")
    assert capfd.readouterr() == ("", "")
