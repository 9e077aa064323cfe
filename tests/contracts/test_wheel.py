"""The wheel that is built carries what a user needs and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_contains_the_page_and_the_types(names):
    static = {f"multihead/view/static/{name}" for name in ("multihead.js", "multihead.css", "widget.js")}
    assert static | {"multihead/py.typed"} <= names


def test_the_wheel_contains_every_source_file(names):
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/multihead").rglob("*.py")}
    assert sources <= names


def test_the_wheel_contains_nothing_else(names):
    assert {name.split("/")[0].split("-")[0] for name in names} == {"multihead"}
    assert not [name for name in names if "test" in name or "viewer" in name or "node_modules" in name]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
