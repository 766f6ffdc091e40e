"""The examples in the docstrings of `experiments` run."""

from __future__ import annotations

import doctest

import pytest

from tuneproof.experiments import allocation, effect_sizes, ledger


@pytest.mark.parametrize("module", [allocation, effect_sizes, ledger], ids=lambda m: m.__name__)
def test_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
