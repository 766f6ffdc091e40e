"""What an outcome model sees of a text: the parts, hashed as zlib would hash them one by one."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuneproof.evaluation.texts import _SIZE, _characters, _counted, fit_features

TEXTS = st.text(st.characters(), max_size=40)


def column(part: str) -> int:
    return zlib.crc32(part.encode("utf-8", "surrogatepass")) % _SIZE


@given(TEXTS)
@example("")
@example("x")
@example("Größe ☃ 𝄞 \ud800 İ ok")
def test_characters_in_a_row_are_hashed_as_zlib_does(text: str) -> None:
    padded = f" {' '.join(text.lower().split())} "
    parts = [padded[i : i + n] for n in range(2, 6) for i in range(len(padded) - n + 1)]
    assert _characters(text).tolist() == [column(part) for part in parts]
    counted = _counted([text, ""], _characters)
    first = slice(*counted.indptr[:2])
    row = dict(zip(counted.indices[first].tolist(), counted.data[first].tolist(), strict=True))
    assert row == pytest.approx(
        {c: 1 + math.log(n) for c, n in Counter(map(column, parts)).items()}
    )


def test_rows_have_length_one_and_what_one_text_alone_has_is_left_out() -> None:
    texts = ["rain on stone", "stone in rain", "a lamp", "of rain and lamp"]
    features, seen = fit_features(texts)
    again = features(texts)
    assert (again.counted != seen.counted).nnz == 0
    words = seen.counted[:, : len(features.words.columns)]
    lengths = np.sqrt(np.asarray(words.multiply(words).sum(axis=1)).ravel())
    assert np.allclose(lengths, 1)
    assert column("rain") in features.words.columns
    assert column("stone") in features.words.columns
    assert column("of") not in features.words.columns
    nothing = features(["zzz", ""])
    assert (len(nothing @ np.ones(features.width)), nothing.width) == (2, features.width)
