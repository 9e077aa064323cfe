"""Files appear whole or not at all, and nothing but files is ever replaced."""

import os
import socket
import stat

import pytest

from multihead.files import other_than_a_file, place_of, written_whole


def write(path, text="new"):
    with written_whole(path) as part:
        assert part.read_bytes() == b""
        assert part.parent == path.resolve().parent
        part.write_text(text)


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """One of each kind of thing that is no file and that a test may make."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    # the name of a socket is short: it is bound from inside its folder
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as held:
        held.bind("socket")
        for name in ("pipe", "folder", "socket"):
            (tmp_path / f"link to {name}").symlink_to(name)
            (tmp_path / f"link to link to {name}").symlink_to(f"link to {name}")
        yield tmp_path


def everything(folder):
    """What is in a folder, links not followed: the same thing has the same number."""
    found = {path.name: path.lstat() for path in folder.iterdir()}
    return {name: (stat.S_IFMT(status.st_mode), status.st_ino) for name, status in found.items()}


KINDS = {"pipe": "a named pipe", "socket": "a socket", "folder": "a folder"}


@pytest.mark.parametrize("prefix", ["", "link to ", "link to link to "])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_file_is_refused_and_stays(strange, name, prefix):
    before = everything(strange)
    path = strange / f"{prefix}{name}"
    error = IsADirectoryError if name == "folder" else FileExistsError
    advice = "name a file in it" if name == "folder" else "which a new file would replace: name another file"
    message = f"{path.name} {'leads to' if prefix else 'is'} {KINDS[name]}(, |: ){advice}"
    with pytest.raises(error, match=message):
        place_of(path)
    with pytest.raises(error, match=message):
        write(path)
    assert everything(strange) == before
    assert other_than_a_file(path) == KINDS[name]


@pytest.mark.parametrize(
    ("mode", "words"), [(stat.S_IFCHR, "a device"), (stat.S_IFBLK, "a device"), (0o150000, "no regular file")]
)
def test_what_a_test_may_not_make_is_refused_too(tmp_path, monkeypatch, mode, words):
    path = tmp_path / "there"
    path.write_text("old")
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda *args, **options: os.stat_result((mode | 0o600, *real(*args, **options)[1:]))
    )
    with pytest.raises(FileExistsError, match=f"there is {words}, which a new file would replace"):
        write(path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_new_file_and_one_that_is_there(tmp_path):
    path = tmp_path / "file"
    assert other_than_a_file(path) is None
    assert place_of(path) == path.resolve()
    write(path)
    assert path.read_text() == "new"
    write(path, "newer")
    assert path.read_text() == "newer"
    assert other_than_a_file(path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    (tmp_path / "second").symlink_to("link")
    target = tmp_path / "elsewhere" / "file"
    if there:
        target.write_text("old")
    write(tmp_path / "second")
    assert target.read_text() == "new"
    assert not target.is_symlink()
    assert str((tmp_path / "link").readlink()) == "elsewhere/file"
    assert str((tmp_path / "second").readlink()) == "link"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "link").symlink_to("absent/file")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "link")
    (tmp_path / "round").symlink_to("round")
    for act in (place_of, write):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            act(tmp_path / "round")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "round"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with written_whole(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_permissions_of_a_file_stay(tmp_path):
    path = tmp_path / "file"
    for mode in (0o600, 0o640, 0o444):
        path.touch()
        path.chmod(mode)
        with written_whole(path) as part:
            assert stat.S_IMODE(part.stat().st_mode) == 0o600
            part.write_text("secret")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    write(tmp_path / "fresh")
    (tmp_path / "plain").touch()
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_it_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(path.read_text()), sync(handle)))
    write(path)
    assert seen == ["old", "new"]


def test_a_system_that_cannot_open_folders(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECTORY")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(stat.S_ISREG(os.fstat(handle).st_mode)))
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
    assert synced == [True]
