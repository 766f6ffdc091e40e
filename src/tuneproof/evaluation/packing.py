"""An outcome model as bytes, to be used by other processes: numbers in NumPy's format, no code.

What is read back is checked: a file that was damaged, or that another version wrote, is refused.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tuneproof.errors import DataError
from tuneproof.evaluation.outcomes import OutcomeModel, OutcomeReport
from tuneproof.evaluation.texts import Features, Rarity

__all__ = ["packed", "unpacked"]

VERSION: Final = 1
"""Of what is written. What a text is taken apart into belongs to it (`texts`)."""

_Arrays = Mapping[str, NDArray[Any]]


def packed(model: OutcomeModel) -> bytes:
    """A model as bytes. Raises `DataError` for one that knows nothing.

    Weights are rounded to 32 bits: scores change by a millionth of their spread.
    """
    features = model.features
    if features is not None and features.space is not None:
        raise DataError(
            "This outcome model needs vectors, which who picks by it has not.",
            mend="Keep one that was fitted without.",
        )
    if features is None:
        raise DataError(
            "The outcome model has learnt nothing, so there is nothing to keep.",
            mend="Let it learn from more posts.",
        )
    about = {
        "version": VERSION,
        "report": asdict(model.report),
        "scale_error": model.scale_error,
    }
    file = io.BytesIO()
    np.savez_compressed(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        word_columns=features.words.columns.astype(np.int32),
        word_rarity=features.words.weights.astype(np.float32),
        character_columns=features.characters.columns.astype(np.int32),
        character_rarity=features.characters.weights.astype(np.float32),
        form_middle=features.middle,
        form_spread=features.spread,
        weights=model.weights.astype(np.float32),
    )
    return file.getvalue()


def unpacked(content: bytes) -> OutcomeModel:
    """The model that these bytes are. Raises `DataError` where they are none of this version."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _model(arrays)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"What was kept of an outcome model cannot be used: {error}.",
            mend="Start a run: its gate trains the model anew.",
        ) from error


def _model(arrays: _Arrays) -> OutcomeModel:
    about = json.loads(arrays["about"].tobytes())
    if about["version"] != VERSION:
        raise ValueError(f"it is of version {about['version']}, and this program reads {VERSION}")
    features = Features(
        words=_rarity(arrays, "word"),
        characters=_rarity(arrays, "character"),
        middle=_numbers(arrays, "form_middle"),
        spread=_numbers(arrays, "form_spread"),
    )
    weights = _numbers(arrays, "weights")
    if weights.shape != (features.width,) or features.middle.shape != features.spread.shape:
        raise ValueError(f"it has {weights.shape} weights for {features.width} columns")
    return OutcomeModel(features, weights, OutcomeReport(**about["report"]), about["scale_error"])


def _rarity(arrays: _Arrays, kind: str) -> Rarity:
    columns, weights = arrays[f"{kind}_columns"], _numbers(arrays, f"{kind}_rarity")
    if columns.dtype != np.int32 or columns.shape != weights.shape:
        raise ValueError(f"its {kind} columns do not fit")
    return Rarity(columns.astype(np.int64), weights)


def _numbers(arrays: _Arrays, name: str) -> NDArray[np.float64]:
    found = arrays[name].astype(np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} is no list of numbers")
    return found
