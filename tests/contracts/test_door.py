"""What the package shows is what it has."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import multihead

MODULES = [
    "multihead",
    *(
        info.name
        for info in pkgutil.walk_packages(multihead.__path__, "multihead.")
        if not info.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_all_is_what_imports(name):
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    if names is None:
        return
    assert len(names) == len(set(names))
    missing = [word for word in names if not hasattr(module, word)]
    assert not missing, f"{name}.__all__ names {missing}"


def test_the_door_opens_on_all_and_nothing_else():
    assert dir(multihead) == sorted(multihead.__all__)
    shown = {name for name in vars(multihead) if not name.startswith("_")}
    rooms = {info.name for info in pkgutil.iter_modules(multihead.__path__)}
    assert shown - rooms - set(multihead.__all__) <= {"importlib", "Any", "TYPE_CHECKING", "jaxtyping"}
    with pytest.raises(AttributeError, match="has no attribute 'atention'"):
        multihead.atention  # noqa: B018


def test_type_checkers_see_the_same_door():
    """The names under TYPE_CHECKING, which tools read, are those that open when asked for."""
    tree = ast.parse(Path(multihead.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(found) == set(multihead.__all__) - {"__version__"}
    for name, module in found.items():
        value = getattr(importlib.import_module(module), name)
        assert getattr(multihead, name) is value


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert multihead.__version__ == version("multihead")
