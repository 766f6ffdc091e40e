"""An outcome model outlives its process as plain numbers; what is damaged is refused."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.liked import disliked, learnt, liked, unlearnt

from tuneproof.errors import DataError
from tuneproof.evaluation import packed, unpacked


def texts() -> list[str]:
    draw = random.Random(8)
    return [*(make(draw) for _ in range(20) for make in (liked, disliked)), "", "ünknown ☃"]


def test_a_model_that_is_read_back_scores_as_it_did() -> None:
    model = unpacked(packed(learnt()))
    before = learnt().scores(texts())
    assert np.abs(model.scores(texts()) - before).max() < 1e-5 * before.std()
    assert model.report == learnt().report
    assert model.scale_error == learnt().scale_error


def test_of_nothing_learnt_nothing_is_kept() -> None:
    with pytest.raises(DataError, match="nothing to keep"):
        packed(unlearnt())


def changed(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def about(arrays: dict[str, Any], old: bytes, new: bytes) -> None:
    told = arrays["about"].tobytes()
    assert old in told
    arrays["about"] = np.frombuffer(told.replace(old, new), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: about(a, b'"version": 1', b'"version": 9'),
        lambda a: about(a, b'"report"', b'"rapport"'),
        lambda a: a.update(weights=a["weights"][:-1]),
        lambda a: a.update(weights=a["weights"] * np.nan),
        lambda a: a.update(word_columns=a["word_columns"].astype(float)),
        lambda a: a.update(character_rarity=a["character_rarity"][1:]),
        lambda a: a.pop("form_middle"),
        lambda a: a.update(weights=np.array([print], dtype=object)),
    ],
    ids=["version", "report", "short", "nan", "floats", "unequal", "missing", "pickled"],
)
def test_what_does_not_fit_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        unpacked(changed(packed(learnt()), change))


def test_what_was_cut_off_is_refused() -> None:
    whole = packed(learnt())
    for content in (b"", b"hello", whole[:100], whole[:-100]):
        with pytest.raises(DataError, match="cannot be used"):
            unpacked(content)
