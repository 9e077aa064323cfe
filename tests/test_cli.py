import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from multihead import cli
from multihead.cli import options, source, terminal
from multihead.errors import SourceError
from multihead.recording import load
from multihead.version import __version__
from tests.view.made import layer_of, made_call, recording_of
from tests.view.reader import Page

EVIL = ["</script><script>alert(1)</script>", "\x1b[31mred\x07", "[bold]x", "שלום", "👩\u200d👧", "&amp;", "\u202eabc"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("webbrowser.open", lambda url: pytest.fail(f"opened {url}"))


@pytest.fixture(scope="session")
def demo_model():
    from multihead.text import load_model

    return load_model()


@pytest.fixture
def demo(demo_model, monkeypatch):
    """The demo model, opened once."""
    from multihead import text

    real = text.load_model
    monkeypatch.setattr(text, "load_model", lambda name=None: demo_model if name is None else real(name))


@pytest.fixture
def saved(tmp_path):
    """A recording whose tokens are the worst that there are."""
    tokens = [*EVIL, "word"]
    made = recording_of(
        layer_of(made_call(heads=2, queries=8, keys=8, spread=2.0)),
        texts={"text": [tokens]},
        provenance={"model": "made"},
    )
    made.save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)


def refused(result, tmp_path, *kept):
    """One sentence on standard error, exit status 2, and no file left."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("multihead: ")
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    return lines[0]


@pytest.mark.demo
def test_the_default_page(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("multihead.cli.source._piped", lambda: False)
    result = run("view", "--no-open")
    assert result.exit_code == 0, result.output
    assert result.stdout == "attention.html\n"
    read = Page((tmp_path / "attention.html").read_text(encoding="utf-8"))
    tokens = read.document["texts"][0]["tokens"]
    assert tokens[read.document["start"]["token"]] == "making"
    assert read.document["start"] == {"layer": 5, "heads": [9], "text": 0, "token": tokens.index("making")}
    layer = read.document["layers"][5]
    assert read.weights(layer)[9, tokens.index("making"), tokens.index("difficult")] == pytest.approx(0.48, abs=0.01)
    assert [len(layer["heads"]) for layer in read.document["layers"]] == [12] * 6
    assert run("view", "--no-open").stdout == "attention-2.html\n", "nothing is overwritten unasked"


@pytest.mark.demo
@pytest.mark.parametrize(("options", "maps"), [([], False), (["--save", "run.safetensors"], True), (["--serve"], True)])
def test_maps_are_recorded_for_what_is_kept_or_served(demo, monkeypatch, options, maps):
    from multihead import text
    from multihead.web import Site

    asked, real = [], text.read
    monkeypatch.setattr(text, "read", lambda *given, **named: asked.append(named["maps"]) or real(*given, **named))
    monkeypatch.setattr(Site, "run", Site.close)
    assert run("view", "A word.", "--no-open", "--layers", "0", *options).exit_code == 0
    assert asked == [maps]


def test_show_the_default(demo, monkeypatch):
    monkeypatch.setattr("multihead.cli.source._piped", lambda: False)
    result = run("show")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "making looks at" in result.stdout
    assert "what making sees in layer 5 head 9" in result.stdout
    assert "difficult(48%)" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout


@pytest.mark.demo
def test_text_may_come_from_anywhere(demo, tmp_path):
    (tmp_path / "text.txt").write_bytes("\ufeffEin Käfer.\r\n".encode())
    for arguments, stdin in (
        (["--file", "text.txt"], None),
        (["-"], "Ein Käfer."),
        ([], "Ein Käfer."),
        (["Ein Käfer."], None),
    ):
        result = run("show", *arguments, "--token", "ein", stdin=stdin)
        assert result.exit_code == 0, result.output
        assert "ein looks at" in result.stdout


@pytest.mark.demo
def test_selection_save_and_open_again(demo, tmp_path):
    result = run(
        "view",
        "the cat sat",
        "--layers",
        "1-2,4",
        "--heads",
        "0,3",
        "--token",
        "cat",
        "-o",
        "page.html",
        "--save",
        "run.safetensors",
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "page.html\n"
    assert [(layer.index, layer.heads) for layer in load(tmp_path / "run.safetensors").layers] == [
        (1, (0, 3)),
        (2, (0, 3)),
        (4, (0, 3)),
    ]
    again = run("view", "run.safetensors", "--token", "cat", "-o", "again.html")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.html").read_text() == (tmp_path / "page.html").read_text()
    assert run("show", "run.safetensors", "--token", "2").stdout.startswith("cat looks at")
    by_layer = run("view", "the cat sat", "--heads", "2:1,5:9", "-o", "page.html")
    assert by_layer.exit_code == 0, by_layer.output
    layers = Page((tmp_path / "page.html").read_text()).document["layers"]
    assert [(layer["index"], layer["heads"]) for layer in layers] == [(2, [1]), (5, [9])]


def test_tokens_are_data(saved, tmp_path):
    result = run("view", saved, "-o", "page.html")
    assert result.exit_code == 0, result.output
    assert Page((tmp_path / "page.html").read_text(encoding="utf-8")).document["texts"][0]["tokens"] == [*EVIL, "word"]
    for position in range(8):
        shown = run("show", saved, "--token", position, "--all")
        assert shown.exit_code == 0, shown.output
        assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout)


def test_the_page_is_opened_where_there_is_a_display(saved, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    assert run("view", saved, "-o", "a page.html").stdout == "a page.html\n"
    assert opened == [(tmp_path / "a page.html").as_uri()]
    run("view", saved, "--no-open")
    monkeypatch.delenv("DISPLAY")
    run("view", saved)
    assert len(opened) == 1


@pytest.mark.demo
@pytest.mark.parametrize(("arguments", "says"), [
    ([""], "the text is empty"),
    (["  \n"], "the text is empty"),
    (["word " * 600], r"the text has 602 tokens, but all-MiniLM-L6-v2 takes 512: .*--truncate"),
    (["the cat sat", "--token", "cart"], "'cart' is not among the 5 tokens: did you mean cat"),
    (["the cat sat", "--token", "99"], "position 99 is not in the text: it has positions 0 to 4"),
    (["the cat", "--layers", "4-7"], "layers 6 and 7 out of range: this model has 6 attention layers, 0 to 5"),
    (["the cat", "--heads", "12"], "heads 12 out of range: valid are 0 to 11"),
    (["the cat", "--heads", "2:12"], "heads 12 out of range: valid are 0 to 11"),
    (["the cat", "--target", "die Katze"], "all-MiniLM-L6-v2 is no encoder-decoder model"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["view", "show"])
def test_what_the_model_cannot_do(demo, tmp_path, command, arguments, says):
    assert __import__("re").search(says, refused(run(command, *arguments), tmp_path))


@pytest.mark.demo
@pytest.mark.parametrize("command", ["view", "show"])
def test_nothing_is_saved_before_the_token_is_found(demo, tmp_path, command):
    arguments = (command, "the cat sat", "--save", "run.safetensors", "--token")
    assert "'cart' is not among the 5 tokens" in refused(run(*arguments, "cart"), tmp_path)
    assert run(*arguments, "cat").exit_code == 0
    assert load(tmp_path / "run.safetensors").texts["text"][0][2] == "cat"


@pytest.mark.parametrize(("arguments", "says"), [
    (["a", "--layers", "x"], "--layers 'x' is no list of numbers: say for example --layers 0,2-5"),
    (["a", "--layers", ""], "--layers '' is no list of numbers"),
    (["a", "--layers", "-1"], "--layers '-1' is no list of numbers"),
    (["a", "--layers", "5-2"], "--layers '5-2' counts backwards: say 2-5"),
    (["a", "--layers", "0-999999999"], "--layers '0-999999999' is no list of numbers"),
    (["a", "--layers", "0-99999"], "names 100000 of them"),
    (["a", "--heads", "1:2,3"], "--heads '1:2,3' is no list of layer:head: say for example --heads 2:1,5:9"),
    (["a", "--heads", "x:2"], "is no list of layer:head"),
    (["a", "--heads", "2:"], "--heads '' is no list of numbers"),
    (["a", "--file", "b"], "there is a TEXT and a --file: give one of them"),
    (["--file", "absent.txt"], "absent.txt: No such file or directory"),
    (["--file", "."], "Is a directory"),
    (["--file", "binary"], "binary is not UTF-8 text: byte 0 is 0xff"),
    (["--file", "zeros"], "zeros holds zero bytes, so it is no text"),
    (["--model", "./absent", "text"], "there is no model folder './absent'"),
    (["--model", "bad name!", "text"], "is no folder and cannot be a name on the hub"),
    (["--model", "inputs", "text"], "the folder 'inputs' holds no model"),
    (["--save", "absent/run.safetensors", "text"], "cannot be written: there is no folder"),
    (["--save", "inputs", "text"], "inputs is a folder: name a file in it"),
    (["absent.safetensors"], "absent.safetensors"),
    (["cut.safetensors"], "cut.safetensors is no recording, or a damaged one"),
    (["foreign.safetensors"], "foreign.safetensors"),
    (["cut.safetensors", "--layers", "2"], "--layers says how to record, and cut.safetensors is recorded already"),
    (["cut.safetensors", "--truncate"], "--truncate says how to record"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["view", "show"])
def test_bad_arguments(tmp_path, command, arguments, says, saved):
    from safetensors.torch import save_file

    (tmp_path / "inputs").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "zeros").write_bytes(b"a\0b")
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:50])
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    before = [path.name for path in tmp_path.iterdir()]
    assert says in refused(run(command, *arguments), tmp_path, *before)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfword\r\n")
    assert source.text_of(None, tmp_path / "text.txt") == "word\r\n"


def test_bytes_from_standard_input_that_are_no_text(tmp_path):
    assert "standard input is not UTF-8 text" in refused(run("show", "-", stdin=b"\xff\xff"), tmp_path)
    assert "the text is empty" in refused(run("show", "-", stdin=""), tmp_path)


@pytest.mark.parametrize("output", ["absent/page.html", "."])
def test_an_output_that_cannot_be_written(saved, tmp_path, output):
    says = refused(run("view", saved, "-o", output), tmp_path, "run.safetensors")
    assert "there is no folder" in says or "is a folder" in says


@pytest.fixture
def pipes(tmp_path):
    """A pipe, and a link to it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")


@pytest.mark.parametrize("name", ["pipe", "link"])
@pytest.mark.parametrize("arguments", [["view", "text", "-o"], ["view", "text", "--save"], ["show", "text", "--save"]])
def test_a_pipe_is_not_replaced_by_a_file(pipes, tmp_path, monkeypatch, arguments, name):
    monkeypatch.setattr("multihead.text.load_model", lambda name: pytest.fail("the work began"))
    says = refused(run(*arguments, name), tmp_path, "pipe", "link")
    verb = "is" if name == "pipe" else "leads to"
    assert says == f"multihead: {name} {verb} a named pipe, which a new file would replace: name another file."
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_name_that_a_link_has_is_not_free(saved, tmp_path):
    (tmp_path / "attention.html").symlink_to("elsewhere.html")
    assert run("view", saved, "--no-open").stdout == "attention-2.html\n"
    assert not (tmp_path / "elsewhere.html").exists()


@pytest.mark.parametrize(("arguments", "says"), [
    (["view", "--file", "text.txt", "-o", "text.txt"], "--output and --file are one file, text.txt"),
    (["view", "--file", "text.txt", "-o", "link"], "--output and --file are one file, text.txt"),
    (["view", "text", "--save", "x", "-o", "./x"], "--output and --save are one file, x"),
    (["view", "text", "--save", "attention.html"], "--output and --save are one file, attention.html"),
    (["view", "run.safetensors", "-o", "run.safetensors"], "--output and TEXT are one file, run.safetensors"),
    (["show", "--file", "text.txt", "--save", "text.txt"], "--save and --file are one file, text.txt"),
])  # fmt: skip
def test_nothing_is_written_over_what_was_named(saved, tmp_path, arguments, says):
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "link").symlink_to("text.txt")
    before = saved.read_bytes()
    answer = refused(run(*arguments), tmp_path, "run.safetensors", "text.txt", "link")
    assert answer == f"multihead: {says}: one would be written over the other."
    assert (tmp_path / "text.txt").read_text() == "words"
    assert saved.read_bytes() == before


def test_a_folder_that_is_not_writable(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is not yours to write in" in refused(run("view", saved), tmp_path, "run.safetensors")


def test_a_disk_that_is_full(saved, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert "No space left on device" in refused(run("view", saved), tmp_path, "run.safetensors")


def test_no_network(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    says = refused(run("view", "text", "--model", "no-such/model-here"), tmp_path)
    assert "cannot be reached: name a folder that holds a model" in says
    assert "leave out --model to use the packaged demo model" in says


def test_a_bug_stays_a_traceback(saved, monkeypatch):
    def broken(*args, **kwargs):
        return torch.zeros(2).view(3)

    monkeypatch.setattr("multihead.view.opening.start", broken)
    assert isinstance(run("view", saved).exception, RuntimeError)

    def theirs(*args, **kwargs):
        return int("x")

    monkeypatch.setattr("multihead.view.opening.start", theirs)
    monkeypatch.setattr("multihead.cli.terminal.raised_here", lambda error: False)
    assert isinstance(run("view", saved).exception, ValueError)


def test_whose_error_it_is():
    for call, ours in (
        (lambda: options.numbers_of("--layers", "x"), True),
        (lambda: int("x"), False),
        (lambda: torch.zeros(2).split(-1), False),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            call()
        assert terminal.raised_here(caught.value) is ours


def test_interrupt(saved, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("multihead.view.opening.start", interrupted)
    result = run("view", saved)
    assert result.exit_code == 130
    assert result.output == ""


def test_errors_of_others_keep_their_words(saved, monkeypatch, tmp_path):
    def gone(*args, **kwargs):
        raise SourceError("the word is gone.")

    monkeypatch.setattr("multihead.view.opening.start", gone)
    assert refused(run("view", saved), tmp_path, "run.safetensors") == "multihead: the word is gone."


def test_help_teaches():
    result = run("--help")
    assert result.exit_code == 0
    assert 'multihead view "The animal' in result.stdout
    for command in ("view", "show"):
        text = run(command, "--help").stdout
        assert "Examples:" in text
        assert "--truncate" in text
    assert run("--version").stdout == f"multihead {__version__}\n"


def test_numbers():
    assert options.numbers_of("--layers", "0,2-5, 9") == [0, 2, 3, 4, 5, 9]
    assert options.heads_of("0,2-5") == [0, 2, 3, 4, 5]
    assert options.heads_of("2:1,5:9,2:3-4") == {2: [1, 3, 4], 5: [9]}


def test_a_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert not terminal.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert terminal.has_display()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert terminal.has_display()
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4")
    assert not terminal.has_display()


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "multihead", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_as_a_process_whose_reader_goes_away(saved):
    process = command("show", saved)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)


def test_as_a_process_without_utf8(saved):
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
    }
    process = command("show", saved, env=environment)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"#" in out
    assert out.isascii()


def test_as_a_process_that_is_interrupted():
    program = """
import signal
import sys

# what starts this process may have it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

class Input:
    def read(self):
        print("reading", flush=True)
        return stdin.buffer.read()

    def __getattr__(self, name):
        return getattr(stdin, name)

stdin, sys.stdin = sys.stdin, Input()
sys.stdin.buffer = sys.stdin
sys.argv = ["multihead", "show", "-"]
from multihead.cli import main
main()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""


def test_help_needs_no_transformers():
    program = (
        "import sys; sys.argv = ['multihead', '--help']\nfrom multihead.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('transformers', 'multihead.text', 'multihead.view')))"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False).returncode == 0


class TestEstimate:
    def test_of_the_demo_model(self, demo):
        answer = run("estimate", "--length", 64, "--batch", 2)
        assert answer.exit_code == 0, answer.output
        assert "6 attentions over 64 tokens, batch 2, on cpu" in answer.stdout
        for word in ("FLOPs, about", "recording", "qk", "peak", "fits in"):
            assert word in answer.stdout
        assert "qk" not in run("estimate", "--length", 64, "--no-qk").stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--length", 0), "Invalid value for '--length'"),
            ((), "Missing option '--length'"),
            (("--length", 5, "--model", "no/such/model"), "no/such/model"),
        ],
    )
    def test_mistakes(self, arguments, message):
        answer = run("estimate", *arguments)
        assert answer.exit_code == 2
        assert message in answer.output


def test_two_recordings_on_one_page(saved, tmp_path):
    other = tmp_path / "other.safetensors"
    recording_of(layer_of(made_call(seed=9))).save(other)
    result = run("compare", str(saved), str(other), "--output", "pair.html", "--no-open")
    assert (result.exit_code, result.output.strip()) == (0, "pair.html")
    document = Page((tmp_path / "pair.html").read_text(encoding="utf-8")).document
    assert document["recordings"] == [saved.stem, "other"]
    assert {layer["recording"] for layer in document["layers"]} == {0, 1}
    assert len({name["name"] for name in document["texts"]}) == len(document["texts"])


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_a_figure(saved, tmp_path, ending):
    result = run("figure", str(saved), "--output", f"figure.{ending}", "--kind", "map", "--layer", "0", "--heads", "0")
    assert (result.exit_code, result.stdout.strip()) == (0, f"figure.{ending}")
    assert all(line.startswith("multihead: ") for line in result.stderr.splitlines()), "what it could not draw"
    begins = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[ending]
    assert (tmp_path / f"figure.{ending}").read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["figure", "RUN", "--output", "figure.docx"], "names no kind of figure: let it end in .pdf, .svg or .png"),
        (["figure", "RUN", "--output", "a.pdf", "--kind", "mop"], "kind='mop' is none of"),
        (["figure", "RUN", "--output", "a.pdf", "--layer", "77"], "layer 77 was not recorded"),
        (["figure", "RUN", "--output", "a.pdf", "--heads", "x"], "--heads 'x' is no list of numbers"),
        (["compare", "RUN", "nowhere.safetensors"], "cannot read nowhere.safetensors"),
        (["compare", "RUN", "RUN", "--output", "RUN"], "are one file"),
    ],
)
def test_wrong_words_about_figures_and_pairs(saved, tmp_path, arguments, says):
    before = saved.read_bytes()
    result = run(*(str(saved) if word == "RUN" else word for word in arguments))
    assert result.exit_code == 2
    assert says in result.output
    assert result.output.count("\n") == 1
    assert saved.read_bytes() == before
    assert not list(tmp_path.glob("a.*"))
