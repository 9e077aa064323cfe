"""What is free, by files as Linux has them."""

import pytest
import torch

from multihead.lens import free

CPU = torch.device("cpu")


def group(folder, limit, usage, stat, *, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, usage, stat), strict=True):
        (folder / name).write_text(f"{text}\n")


def left(tmp_path, memberships):
    (tmp_path / "cgroup").write_text(memberships)
    return list(free._groups(tmp_path / "cgroup", tmp_path / "root"))


def test_version_2_and_the_groups_above(tmp_path):
    group(tmp_path / "root" / "slurm", "9000", "5000", "anon 4000\ninactive_file 700\nactive_file 300")
    group(tmp_path / "root" / "slurm" / "job_7", "max", "2000", "inactive_file 0")
    group(tmp_path / "root" / "slurm" / "job_7" / "step_0", "3000", "3500", "inactive_file 100")
    assert left(tmp_path, "0::/slurm/job_7/step_0\n") == [9000 - 4300, 0]
    # a group that is not above this process is none of its business
    assert left(tmp_path, "0::/slurm\n") == [9000 - 4300]


def test_version_1_in_a_container_that_sees_the_hosts_path(tmp_path):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "root" / "memory", "8000", "1000", "inactive_file 5\ntotal_inactive_file 250", names=names)
    lines = "5:devices:/docker/0123\n4:cpu,memory:/docker/0123\n1:name=systemd:/docker/0123\n"
    assert left(tmp_path, lines) == [8000 - 750]


@pytest.mark.parametrize("memberships", ["", "0::/\n", "4:memory:/here\n"])
def test_no_groups_to_be_seen(tmp_path, memberships):
    assert left(tmp_path, memberships) == []


def test_what_cannot_be_read_is_no_limit(tmp_path):
    group(tmp_path / "root", "strange", "1", "")
    assert left(tmp_path, "0::/\n") == []
    assert list(free._groups(tmp_path / "nowhere", tmp_path)) == []


def test_the_least_counts(monkeypatch):
    monkeypatch.setattr(free, "_machine", lambda: 1000)
    monkeypatch.setattr(free, "_groups", lambda: iter([2000, 300]))
    assert free.free_bytes(CPU) == 300
    monkeypatch.setattr(free, "_groups", lambda: iter([2000]))
    assert free.free_bytes(CPU) == 1000
    monkeypatch.setattr(free, "_machine", lambda: None)
    assert free.free_bytes(CPU) == 2000
    monkeypatch.setattr(free, "_groups", lambda: iter([]))
    assert free.free_bytes(CPU) is None


def test_this_machine():
    found = free.free_bytes(CPU)
    assert found is not None
    assert 1 << 20 < found < 1 << 50


def test_where_nobody_says_what_is_free(monkeypatch):
    monkeypatch.setattr(free, "_groups", lambda: iter([]))
    monkeypatch.setattr("sys.platform", "elsewhere")
    assert free.free_bytes(CPU) is None or free.free_bytes(CPU) > 0

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert free.free_bytes(CPU) is None
