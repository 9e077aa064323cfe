"""What the package shows is what it has."""

import importlib
import pkgutil
from types import ModuleType

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


def test_the_door_has_no_name_beside_all():
    public = {
        name
        for name, value in vars(multihead).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    modules = {info.name for info in pkgutil.iter_modules(multihead.__path__)}
    assert public == {name for name in multihead.__all__ if not name.startswith("_")} - modules


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert multihead.__version__ == version("multihead")
