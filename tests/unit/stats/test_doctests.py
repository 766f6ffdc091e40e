"""Every example in the statistics' docstrings runs and says the truth."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import tuneproof.stats

MODULES = [
    "tuneproof.assignment",
    *(f"tuneproof.stats.{m.name}" for m in pkgutil.iter_modules(tuneproof.stats.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_written(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented_and_listed(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", None) == name
        and (inspect.isfunction(value) or inspect.isclass(value))
    }
    assert own <= set(module.__all__)
    for key in own:
        assert inspect.getdoc(getattr(module, key)), key


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_have_an_example(name: str) -> None:
    module = importlib.import_module(name)
    without = [
        key
        for key in module.__all__
        if inspect.isfunction(getattr(module, key)) and ">>>" not in (getattr(module, key).__doc__)
    ]
    assert not without
