import hashlib
import io
import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from multihead import masks
from multihead.core import Statistics, reference
from multihead.errors import RecordingError, SourceError
from multihead.recording import Recording
from multihead.view import asked, figures
from multihead.view.drawing import letters, maps
from multihead.view.drawing.grid import Row, draw_heads
from multihead.view.drawing.letters import Letters, label
from multihead.view.drawing.paper import DARK, LIGHT, Look
from multihead.view.drawing.running import _visual, flow
from multihead.view.opening import start
from tests.accuracy import check
from tests.view.made import layer_of, made_call, recording_of, true_weights

VIEWER = Path(__file__).parents[2] / "viewer" / "src"
CALL = made_call(heads=3, queries=11, keys=11, mask=masks.causal(), spread=1.5)
TOKENS = ["[CLS]", "the", "govern", "##ments", "act", ",", "slowly", "and", "##so", "$on$", "[SEP]"]


def recorded(call=CALL, tokens=TOKENS, **options):
    return recording_of(layer_of(call, **options), texts={"text": [tokens]} if tokens else None)


def images(figure):
    """Every drawn map by its gid; the bar of the scale has none."""
    return {image.get_gid(): image for axes in figure.axes for image in axes.images if image.get_gid()}


def patches(figure):
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_gid()]
    return {patch.get_gid(): patch for patch in found}


def texts(figure):
    labels = [text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()]
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in labels]


def saved(figure, kind):
    file = io.BytesIO()
    figure.savefig(file, format=kind)
    return file.getvalue()


def passes(found, call, heads):
    exact, plain = (reference(call, dtype).weights[0, heads] for dtype in (torch.float64, call.q.dtype))
    check(torch.as_tensor(np.array(found)), exact, plain)


class TestNumbers:
    def test_maps_are_the_weights(self):
        figure = recorded().figure("map", heads=[2, 0])
        found = [image.get_array().data for image in images(figure).values()]
        assert list(images(figure)) == ["layer-0-head-2", "layer-0-head-0"]
        passes(found, CALL, [2, 0])
        with pytest.raises(AssertionError):
            passes(found[::-1], CALL, [2, 0])

    def test_maps_of_chosen_queries_and_keys(self):
        figure = recorded(queries=[2, 3, 5, 7]).figure("map", heads=[1], queries=[7, 3], keys=[1, 0, 4])
        (image,) = images(figure).values()
        exact = true_weights(CALL, heads=[1])[0][[7, 3]][:, [1, 0, 4]]
        assert image.get_array().data == pytest.approx(exact, abs=1e-6)
        assert [text.get_text() for text in image.axes.get_yticklabels()] == ["and", "ments"]

    def test_long_maps_keep_the_largest_weight_of_each_cell(self, monkeypatch):
        monkeypatch.setattr(maps, "LARGEST", 4)
        monkeypatch.setattr(asked, "_BAND", 40)
        figure = recorded().figure("map", heads=[1])
        (image,) = images(figure).values()
        exact = true_weights(CALL, heads=[1])[0]
        cells = [[exact[row : row + 3, key : key + 3].max() for key in (0, 3, 6, 9)] for row in (0, 3, 6, 9)]
        assert image.get_array().data == pytest.approx(np.array(cells), abs=1e-6)
        assert figure.notes == ("Each cell is the largest of 3 × 3 weights.",)
        assert figure.notes[0] in texts(figure)

    def test_no_cell_is_smaller_than_a_pixel(self):
        made = recorded(made_call(heads=9, queries=211, keys=211, spread=2.0), None)
        figure = made.figure("map", heads=range(9), size=3.3)
        found = images(figure)
        box = found["layer-0-head-7"].axes.get_window_extent()
        rows, columns = found["layer-0-head-7"].get_array().shape
        assert columns < 211
        assert min(box.width / columns, box.height / rows) >= 1 - 1e-6
        shared = int(re.search(r"of (\d+) ×", figure.notes[0])[1])
        exact = made.rows(0, range(shared), heads=[7])[0].numpy()
        assert found["layer-0-head-7"].get_array()[0, 1] == pytest.approx(exact[:, shared : 2 * shared].max())

    def test_overviews_smaller_than_their_cells_are_means_of_them(self):
        means = np.random.default_rng(0).random((40, 48, 47))
        figure = draw_heads([Row(0, "", tuple(range(40)), means)], Look("sqrt", 6.0, None, LIGHT, None))
        image = images(figure)["layer-0-head-39"]
        assert image.get_array().shape == (24, 24)
        assert image.get_array()[5, 23] == pytest.approx(means[39, 10:12, 46:].mean())
        assert image.get_array()[5, 22] == pytest.approx(means[39, 10:12, 44:46].mean())

    def test_heads_are_the_weights_of_a_short_text(self):
        figure = recorded().figure()
        found = images(figure)
        assert list(found) == [f"layer-0-head-{head}" for head in range(3)]
        exact = true_weights(CALL)
        for head, image in enumerate(found.values()):
            assert image.get_array().data == pytest.approx(exact[head], abs=1e-6)
            assert image.norm.vmax == pytest.approx(exact[head].max(), abs=1e-6)
            other = exact[(head + 1) % 3]
            assert np.abs(image.get_array().data - other).max() > 0.1

    def test_heads_of_a_long_text_are_means(self):
        call = made_call(heads=2, queries=101, keys=101, spread=2.0)
        found = images(recorded(call, None).figure("heads"))
        exact = true_weights(call)
        for head, image in enumerate(found.values()):
            assert image.get_array().shape == (34, 34)
            assert image.get_array()[1, 2] == pytest.approx(exact[head, 3:6, 6:9].mean(), abs=1e-6)

    def test_heads_are_content_with_recorded_blocks(self):
        made = recorded(statistics=Statistics(blocks=(2, 2)))
        layer = made.layers[0]
        without = Recording((torch_free(layer),), made.texts)
        image = images(without.figure())["layer-0-head-2"]
        assert image.get_array()[3, 1] == pytest.approx(true_weights(CALL)[2, 6:8, 2:4].mean(), abs=1e-6)
        with pytest.raises(RecordingError, match="holds no queries and keys"):
            without.figure("map", heads=[0])

    @pytest.mark.parametrize("scale", [None, "linear", "log"])
    def test_text_is_shaded_by_the_weights(self, scale):
        figure = recorded().figure("text", token="slowly", heads=[0, 2], scale=scale)
        exact = true_weights(CALL)
        worst = 0.0
        for head in (0, 2):
            for key in range(11):
                found = shade(figure, head, key)
                assert found == pytest.approx(tinted(exact[head, 6, key], head, scale), abs=1.5 / 255)
                worst = max(worst, np.abs(found - tinted(exact[2 - head, 6, key], head, scale)).max())
        assert worst > 0.1, "the shades of swapped heads would pass"

    def test_text_that_looks_at_a_key(self):
        call = made_call(heads=2, queries=5, keys=7)
        layer = layer_of(call, query_text="target", key_text="source")
        figure = recording_of(layer).figure("text", token="source4", heads=[1])
        assert any("what “source4” is looked at by" in text for text in texts(figure))
        for query in range(5):
            weight = true_weights(call)[1, query, 4]
            assert shade(figure, 1, query) == pytest.approx(tinted(weight, 1, None), abs=1.5 / 255)
        assert len(patches(figure)) == 5

    def test_links_are_as_full_as_their_weights(self):
        figure = recorded().figure("links", heads=[1, 2], queries=range(2, 9))
        exact = true_weights(CALL)[:, 2:9]
        lines = {each.get_gid(): each for each in figure.axes[0].collections if isinstance(each, LineCollection)}
        for head in (1, 2):
            shares = exact[head] / exact[1:].max()
            drawn = lines[f"layer-0-head-{head}"]
            assert len(drawn.get_segments()) == (shares >= 1 / 512).sum()
            found = np.zeros_like(shares)
            tops = [
                min(y for each in lines.values() for y in np.array(each.get_segments())[:, end, 1]) for end in (0, 1)
            ]
            for ((_, left), (_, right)), colour in zip(drawn.get_segments(), drawn.get_colors(), strict=True):
                rows = [int((y - top) / (7 / 72 * 1.6) + 0.2) for y, top in zip((left, right), tops, strict=True)]
                found[tuple(rows)] = colour[3]
                assert tuple(colour[:3]) == pytest.approx(to_rgb(LIGHT.heads[head]))
            assert found == pytest.approx(np.where(shares >= 1 / 512, shares, 0), abs=1e-5)
            assert np.abs(found - exact[3 - head] / exact[1:].max()).max() > 0.1

    def test_links_of_one_token_only(self):
        figure = recorded().figure("links", heads=[1], token="slowly")
        (lines,) = [each for each in figure.axes[0].collections if isinstance(each, LineCollection)]
        weights = true_weights(CALL)[1, 6]
        assert sorted(lines.get_colors()[:, 3]) == pytest.approx(
            sorted(share for share in weights / weights.max() if share >= 1 / 512), abs=1e-5
        )

    def test_scales(self):
        weights = np.array([[0.9, 0.09], [0.0, 9e-6]])
        for scale, expected in (("linear", 0.1), ("sqrt", 0.1**0.5), ("log", 0.75)):
            rows = [Row(0, "", (0,), weights[None])]
            image = images(draw_heads(rows, Look(scale, None, None, LIGHT, None)))["layer-0-head-0"]
            assert image.norm(weights)[0, 1] == pytest.approx(expected)
            assert image.cmap(image.norm(weights))[1, 0] == pytest.approx([1, 1, 1, 1])

    @pytest.mark.parametrize("kind", ["heads", "map", "text", "links"])
    @pytest.mark.parametrize("scale", ["linear", "sqrt", "log"])
    def test_a_text_in_which_nobody_sees_anything(self, kind, scale):
        blind = made_call(heads=2, queries=5, keys=5, mask=masks.prefix(0))
        figure = recorded(blind, None).figure(kind, scale=scale)
        assert saved(figure, "png")
        for image in images(figure).values():
            assert (np.asarray(image.get_array()) == 0).all()

    def test_weights_that_are_no_numbers_are_refused(self):
        made = recorded()
        made.layers[0].q[0, 1, 3] = float("nan")
        try:
            for kind in ("map", "links"):
                with pytest.raises(RecordingError, match=r"layer 0 holds weights that are NaN or infinite"):
                    made.figure(kind, heads=[1])
        finally:
            made.layers[0].q[0, 1, 3] = CALL.q[0, 1, 3]


def torch_free(layer):
    """The layer without what weights are recomputed from."""
    from dataclasses import replace

    return replace(layer, q=None, k=None)


def tinted(weight, head, scale, theme=LIGHT):
    """What the page makes of a weight: a share of the head's colour on paper."""
    share = {
        None: lambda: 0.15 + 0.85 * weight**0.5 if weight >= 0.01 else 0.0,
        "linear": lambda: weight if weight >= 0.01 else 0.0,
        "log": lambda: max(0.0, 1 + np.log10(max(weight, 1e-30)) / 4),
    }[scale]()
    colour, paper = np.array(to_rgb(theme.heads[head])), np.array(to_rgb(theme.paper))
    return 0.44 * share * colour + (1 - 0.44 * share) * paper


def shade(figure, head, token):
    return np.array(patches(figure)[f"layer-0-head-{head}-token-{token}"].get_facecolor()[:3])


class TestWhatIsShown:
    def test_the_kind_follows_from_what_is_given(self):
        made = recorded()
        assert len(images(made.figure())) == 3
        assert len(images(made.figure(layer=0))) == 1
        assert len(images(made.figure(queries=[1, 2]))) == 1
        assert patches(made.figure(token="act"))

    def test_the_head_that_tells_most_is_the_pages(self):
        made = recorded()
        opened = start(made, "slowly")
        figure = made.figure("map", token="slowly")
        assert list(images(figure)) == [f"layer-{opened['layer']}-head-{opened['heads'][0]}"]

    def test_heads_keep_the_models_numbers(self):
        layers = [layer_of(made_call(heads=6, seed=seed), index=index, heads=heads)
                  for seed, (index, heads) in enumerate([(3, [1, 4]), (7, [0, 4, 5])])]  # fmt: skip
        made = recording_of(*layers, texts={})
        assert list(images(made.figure())) == [
            "layer-3-head-1", "layer-3-head-4", "layer-7-head-0", "layer-7-head-4", "layer-7-head-5"
        ]  # fmt: skip
        assert list(images(made.figure("heads", heads=[4], layer=7))) == ["layer-7-head-4"]
        assert {"0", "1", "4", "5", "3", "7"} <= set(texts(made.figure()))
        # one column a head, one row a layer
        boxes = {gid: image.get_extent() for gid, image in images(made.figure()).items()}
        assert boxes["layer-3-head-4"][0] == boxes["layer-7-head-4"][0]
        assert boxes["layer-7-head-0"][2] == boxes["layer-7-head-5"][2] > boxes["layer-3-head-1"][2]

    def test_two_texts_are_told_apart(self):
        self_attention = layer_of(made_call(queries=5, keys=5), query_text="target", key_text="target")
        cross = layer_of(made_call(queries=5, keys=7), index=1, query_text="target", key_text="source")
        made = recording_of(self_attention, cross)
        assert {"target → target", "target → source"} <= set(texts(made.figure()))
        found = texts(made.figure("map", layer=1))
        assert {"target (queries)", "source (keys)", "target4", "source6"} <= set(found)
        assert not any(patch.get_edgecolor()[3] for patch in patches(made.figure(layer=1, token="target3")).values())

    def test_a_recording_without_texts_shows_positions(self):
        made = Recording((layer_of(CALL),), {})
        assert {"0", "10"} <= set(texts(made.figure("map")))
        assert saved(made.figure("text", token=4), "png")

    def test_queries_after_a_cache_stand_at_their_place(self):
        call = made_call(heads=1, queries=2, keys=6, mask=masks.causal())
        made = recording_of(layer_of(call), texts={"text": [["a", "b", "c", "d", "e", "f"]]})
        (image,) = images(made.figure("map")).values()
        assert [text.get_text() for text in image.axes.get_yticklabels()] == ["e", "f"]
        figure = made.figure(token="f", heads=[0])
        assert shade(figure, 0, 2) == pytest.approx(tinted(true_weights(call)[0, 1, 2], 0, None), abs=1.5 / 255)

    def test_the_sequence_of_a_batch(self):
        call = made_call(batch=2, heads=1, queries=3, keys=3)
        made = recording_of(layer_of(call), texts={"text": [["a", "b", "c"], ["d", "e", "f"]]})
        figure = made.figure("map", item=1)
        assert {"d", "e", "f"} <= set(texts(figure))
        (image,) = images(figure).values()
        assert image.get_array().data == pytest.approx(true_weights(call, item=1)[0], abs=1e-6)
        with pytest.raises(RecordingError, match="there is no sequence 2"):
            made.figure("map", item=2)

    @pytest.mark.parametrize("kind", ["heads", "map", "text", "links"])
    def test_one_token(self, kind):
        figure = recorded(made_call(heads=1, queries=1, keys=1), ["only"]).figure(kind)
        assert saved(figure, "png")

    def test_the_colours_are_the_pages(self):
        script, style = ((VIEWER / name).read_text(encoding="utf-8") for name in ("colours.ts", "style.css"))
        for name, theme in (("LIGHT", LIGHT), ("DARK", DARK)):
            listed = re.search(rf"const {name} = \[(.*?)\]", script)
            assert tuple(re.findall(r'"(#\w{6})"', listed[1])) == theme.heads
        assert int(re.search(r"TEXT_TINT = (\d+)", script)[1]) == 44
        blocks = re.findall(r":root[^{]*\{(.*?)\}", style, flags=re.DOTALL)[:2]
        for block, theme in zip(blocks, (LIGHT, DARK), strict=True):
            for name in ("ink", "quiet", "rule", "map"):
                assert re.search(rf"--{name}: (#\w+);", block)[1] == getattr(theme, name)

    def test_dark(self):
        figure = recorded().figure("text", token="slowly", heads=[1], dark=True)
        assert figure.get_facecolor()[:3] == pytest.approx(to_rgb(DARK.paper))
        assert shade(figure, 1, 3) == pytest.approx(tinted(true_weights(CALL)[1, 6, 3], 1, None, DARK), abs=1.5 / 255)


class TestLetters:
    def test_tokens_are_words_and_never_formulas(self):
        tokens = ["$x^2$", "<b>", "a\nb", "\x1b[31m", "&amp;", "", "_{a}", r"\alpha"]
        made = recorded(made_call(heads=1, queries=8, keys=8), tokens)
        for kind in ("map", "text", "links"):
            figure = made.figure(kind, title="$5 for $x$")
            assert {"$x^2$", "<b>", r"a\nb", r"\x1b[31m", "&amp;", "∅", "$5 for $x$"} <= set(texts(figure))
            drawn = ET.fromstring(saved(figure, "svg"))
            words = {text for node in drawn.iter() for text in [(node.text or "").strip()] if node.tag.endswith("text")}
            assert {"$x^2$", "<b>", r"a\nb", "∅", "_{a}"} <= words
            assert b"/FontFile2" in saved(figure, "pdf")
            assert b"/Type3" not in saved(figure, "pdf")

    def test_what_no_font_has_is_drawn_as_a_number_and_said(self, monkeypatch):
        monkeypatch.setattr(letters, "_fallbacks", lambda missing: ((), missing))
        made = recorded(made_call(heads=1, queries=3, keys=3), ["plain", "今天", "今"])
        figure = made.figure("text")
        assert figure.notes == ("No installed font has U+4ECA, U+5929: drawn as numbers in ‹ ›.",)
        assert {"‹4ECA›‹5929›", "‹4ECA›", "plain"} <= set(texts(figure))
        assert saved(figure, "png")

    def test_fonts_are_found_by_their_glyphs(self):
        family = letters._fallbacks(frozenset("今"))
        if not family[0]:
            pytest.skip("no font for Chinese is installed")
        figure = recorded(made_call(heads=1, queries=2, keys=2), ["今天", "好"]).figure("map")
        assert figure.notes == ()
        assert {"今天", "好"} <= set(texts(figure))
        # a warning that a glyph is missing would be an error here
        for kind in ("png", "svg", "pdf"):
            assert saved(figure, kind)

    def test_a_font_that_cannot_be_opened_is_passed_over(self, tmp_path, monkeypatch):
        broken = tmp_path / "broken.ttf"
        broken.write_bytes(b"no font")
        monkeypatch.setattr(letters.font_manager, "findfont", lambda *_, **__: str(broken))
        assert letters._drawn_by("Broken", "ab") == frozenset()

    def test_labels_do_not_touch_each_other(self):
        for count in (9, 40, 150):
            tokens = [f"word{place}" for place in range(count)]
            made = recorded(made_call(heads=2, queries=count, keys=count), tokens)
            figure = made.figure("map", heads=[0, 1])
            FigureCanvasAgg(figure).draw()
            for image in images(figure).values():
                for axis in (image.axes.xaxis, image.axes.yaxis):
                    boxes = [text.get_window_extent() for text in axis.get_ticklabels()]
                    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
                    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.p0, box.p1))

    def test_all_tokens_are_labelled_where_there_is_room(self):
        assert texts(recorded().figure("map")).count("slowly") == 2
        tokens = [f"word{place}" for place in range(300)]
        found = texts(recorded(made_call(heads=1, queries=300, keys=300), tokens).figure("map"))
        assert "word0  0" in found
        assert "word1  1" not in found


class TestRunningText:
    def spots(self, tokens, room=2.0):
        words = [label(token) for token in tokens]
        return flow(tokens, words, Letters(words), room)

    def test_lines_are_broken_between_words(self):
        tokens = [f"▁gov{place}" if place % 3 == 0 else f"ern{place}" for place in range(30)]
        spots = self.spots(tokens)
        line = {spot.token: spot.line for spot in spots}
        assert sorted(line) == list(range(30))
        assert max(line.values()) > 3
        assert all(line[token] == line[token + 1] == line[token + 2] for token in range(0, 30, 3))
        assert all(spot.left + spot.width <= 2.0 + 1e-9 for spot in spots)
        for before, after in itertools.pairwise(spots):
            if before.line == after.line:
                assert after.left >= before.left + before.width

    def test_a_word_longer_than_a_line_is_broken_between_its_tokens(self):
        spots = self.spots(["▁a", *["bcdefgh"] * 20])
        assert max(spot.line for spot in spots) > 3
        assert all(spot.left + spot.width <= 2.0 + 1e-9 for spot in spots)

    def test_a_line_break_ends_its_line(self):
        line = {spot.token: spot.line for spot in self.spots(["Ġa", "Ċ", "Ġb", "\n", "Ġc"])}
        assert line == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2}

    def test_hebrew_runs_from_the_right(self):
        left = {
            spot.token: spot.left for spot in self.spots(["[CLS]", "הילד", "הלך", "John", "Smith", "2009", "."], 6.0)
        }
        assert left[0] > left[1] > left[2] > left[4] > left[3]
        assert left[6] == min(left.values())

    def test_the_order_of_mixed_lines(self):
        kinds = {"a": "L", "b": "L", "א": "R", "ב": "R", ",": ""}
        for logical, from_right, visual in (
            ("aבאb", False, "aאבb"), ("אב", False, "בא"), ("אaבb", True, "bבaא"), ("אab", True, "abא"),
            ("א,ב", False, "ב,א"), ("a,א", True, "א,a"), ("", False, ""),
        ):  # fmt: skip
            order = _visual([kinds[letter] for letter in logical], from_right=from_right)
            assert "".join(logical[place] for place in order) == visual

    def test_chinese_has_no_spaces_and_korean_has(self):
        chinese, korean = (self.spots(tokens) for tokens in (["今天", "天气"], ["한국", "어도"]))
        gaps = [spots[1].left - spots[0].left - spots[0].width for spots in (chinese, korean)]
        assert gaps[0] < 0.01 < gaps[1]


class TestFiles:
    def test_two_processes_write_the_same_bytes(self, tmp_path):
        program = tmp_path / "draw.py"
        program.write_text(
            "import hashlib, io, sys\n"
            "from tests.view.test_figures import recorded, saved\n"
            "for kind in ('heads', 'map', 'text', 'links'):\n"
            "    for form in ('png', 'svg', 'pdf'):\n"
            "        figure = recorded().figure(kind, title='naïve 今天 الولد')\n"
            "        print(kind, form, hashlib.sha256(saved(figure, form)).hexdigest())\n"
        )
        root = str(Path(__file__).parents[2])
        found = []
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
            answer = subprocess.run(
                [sys.executable, str(program)], capture_output=True, text=True, check=True, env=environment
            )
            found.append(answer.stdout.splitlines())
        assert found[0] == found[1]
        assert len({line.split()[-1] for line in found[0]}) == 12
        # and here, where other figures were drawn before
        figure = recorded().figure("map", title="naïve 今天 الولد")
        assert f"map svg {hashlib.sha256(saved(figure, 'svg')).hexdigest()}" in found[0]

    def test_a_path_says_the_format(self, tmp_path):
        figure = recorded().figure("links", heads=[0])
        for name, begins in (("a.pdf", b"%PDF"), ("a.SVG", b"<?xml"), ("a.png", b"\x89PNG")):
            figure.savefig(tmp_path / name)
            assert (tmp_path / name).read_bytes().startswith(begins)
        figure.savefig(str(tmp_path / "bare"))
        assert (tmp_path / "bare.png").read_bytes() == (tmp_path / "a.png").read_bytes() == figure._repr_png_()
        figure.savefig(tmp_path / "named.pdf", metadata={"Title": "Heads"})
        assert b"/Title (Heads)" in (tmp_path / "named.pdf").read_bytes()
        assert b"CreationDate" not in (tmp_path / "named.pdf").read_bytes()

    def test_a_file_appears_whole_or_not_at_all(self, tmp_path):
        figure = recorded().figure("links", heads=[0])
        (tmp_path / "a.nonsense").write_bytes(b"old")
        with pytest.raises(ValueError, match="nonsense"):
            figure.savefig(tmp_path / "a.nonsense")
        assert [file.name for file in tmp_path.iterdir()] == ["a.nonsense"]
        assert (tmp_path / "a.nonsense").read_bytes() == b"old"

    def test_nothing_of_matplotlib_is_changed(self):
        before = dict(mpl.rcParams)
        with mpl.rc_context({"font.size": 31.0, "axes.facecolor": "red", "text.usetex": True}):
            changed = recorded().figure("map")
            inside = saved(changed, "svg")
            assert mpl.rcParams["font.size"] == 31.0
        assert dict(mpl.rcParams) == before
        assert inside == saved(recorded().figure("map"), "svg")

    def test_pyplot_is_left_alone(self):
        program = (
            "import sys; from tests.view.test_figures import recorded, saved; saved(recorded().figure('map'), 'pdf');"
            "sys.exit('matplotlib.pyplot' in sys.modules)"
        )
        root = str(Path(__file__).parents[2])
        answer = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, check=False)
        assert answer.returncode == 0

    def test_without_matplotlib_one_sentence(self, monkeypatch):
        for name in [name for name in sys.modules if name.startswith("multihead.view.drawing")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"matplotlib: pip install 'multihead\[figures\]'\."):
            recorded().figure()


class TestSizes:
    @pytest.mark.parametrize("kind", ["heads", "map", "text", "links"])
    def test_as_asked(self, kind):
        assert tuple(recorded().figure(kind, size=(5.5, 7)).get_size_inches()) == pytest.approx((5.5, 7))
        assert recorded().figure(kind, size=4).get_size_inches()[0] == pytest.approx(4)
        assert recorded().figure(kind).get_size_inches()[0] <= 6.75 + 1e-9

    @pytest.mark.parametrize("kind", ["heads", "map", "text", "links"])
    def test_too_small(self, kind):
        with pytest.raises(ValueError, match=r"size=.* (too low|too narrow|no room)"):
            recorded().figure(kind, size=(0.8, 0.5))

    @pytest.mark.parametrize("size", [0, -1.0, (3,) * 3, "4", (True, 2), float("nan"), 1e9])
    def test_senseless(self, size, as_users_run):
        with pytest.raises(ValueError, match="is neither a width nor"):
            figures._size(size)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"kind": "maps"}, ValueError, r"kind='maps' is none of .*: did you mean 'map'\?"),
            ({"kind": "pie"}, ValueError, r"kind='pie' is none of 'heads', 'map', 'text' and 'links'\."),
            ({"kind": "map", "scale": "logs"}, ValueError, r"scale='logs' is none of .*: did you mean 'log'\?"),
            ({"kind": "map", "layer": 4}, RecordingError, "layer 4 was not recorded: recorded are 0"),
            ({"kind": "heads", "layer": 4}, RecordingError, "layer 4 was not recorded"),
            ({"kind": "map", "heads": [5]}, RecordingError, "head 5 of layer 0 was not recorded: its heads are 0 to 2"),
            ({"kind": "heads", "heads": [5]}, RecordingError, "head 5 was not recorded: recorded are 0 to 2"),
            ({"kind": "map", "heads": []}, ValueError, r"heads=\[\] leaves nothing to draw"),
            ({"kind": "map", "heads": [1, 1]}, ValueError, r"heads \[1, 1\] names one twice"),
            ({"kind": "map", "queries": [11]}, RecordingError, "query 11 of layer 0 was not recorded"),
            ({"kind": "map", "keys": [-1]}, RecordingError, "key -1 of layer 0 was not recorded"),
            ({"token": "goverments"}, SourceError, "did you mean governments"),
            ({"token": 11}, SourceError, "position 11 is not in the text"),
            ({"kind": "heads", "token": "act", "keys": [1]}, ValueError, "so token and keys choose nothing"),
            ({"token": "act", "queries": [1]}, ValueError, "so queries choose nothing: keys= says which"),
            ({"kind": "links", "token": "act", "queries": [1]}, ValueError, "is at 4, which is not among the queries"),
            ({"kind": "map", "item": 1}, RecordingError, "there is no sequence 1"),
        ],
    )
    def test_what_means_nothing(self, options, error, words):
        with pytest.raises(error, match=words):
            recorded().figure(**options)

    def test_long_texts(self):
        call = made_call(heads=1, queries=2, keys=10_000)
        made = recording_of(layer_of(call, query_text="asks", key_text="long"))
        with pytest.raises(ValueError, match=r"10000 tokens for 1 head .* keys=range\(1000\), or draw kind='map'"):
            made.figure("text", token="asks1")
        with pytest.raises(ValueError, match=r"10000 tokens are more than the 100 .* kind='map'"):
            made.figure("links")
        assert patches(made.figure("text", token="asks1", keys=range(70, 90)))
        (image,) = images(made.figure("map")).values()
        assert image.get_array().shape == (2, 477)

    def test_nothing_to_draw(self):
        with pytest.raises(SourceError, match="the recording holds no layer"):
            Recording((), {}).figure()
        empty = recorded(made_call(heads=1, queries=0, keys=0), None)
        for kind in ("heads", "map", "text", "links"):
            with pytest.raises(SourceError, match="layer 0 has 1 head, 0 queries and 0 keys, so there is nothing"):
                empty.figure(kind)

    def test_neither_blocks_nor_queries(self):
        made = recorded()
        bare = Recording((torch_free(made.layers[0]),), made.texts)
        with pytest.raises(RecordingError, match="holds neither an overview nor what it is measured from"):
            bare.figure()
