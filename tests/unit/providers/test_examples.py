"""The examples in the docstrings of durations, pairs and search run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from tuneproof.curation import pairs
from tuneproof.training import durations, search


@pytest.mark.parametrize("module", [durations, pairs, search], ids=lambda m: m.__name__)
def test_examples_run(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
