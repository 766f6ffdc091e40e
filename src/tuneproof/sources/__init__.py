"""Where posts come from: tables of any database that SQLAlchemy knows, files of three kinds.

`columns` finds the user's columns by our words for them, `arithmetic` works rates out of them,
`rows` turns rows into posts, `choosing` filters and orders what no database does; `sql`
makes the one query, and `databases` knows which driver is best for reading it (`postgres`,
`sqlite`, `generic`); `files` reads files with the same meaning, `loading` puts a file into a
table. All read only, but for `loading`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tuneproof.collection import Source
from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig, Url
from tuneproof.sources.loading import import_posts

__all__ = ["import_posts", "open_source"]

_FILES = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
}


def open_source(config: SourceConfig | str | Path) -> Source:
    """The source that the settings describe; nothing is connected before it is used.

    A string is a file (`.parquet`, `.csv`, `.jsonl`) or a database address, of which the table
    `posts` is read. Raises `DataError` for a file of another kind or one that is not there, and
    where the address is missing.
    """
    if not isinstance(config, SourceConfig):
        config = SourceConfig(url=Url(str(config)))
    address = config.url
    if not address:
        raise DataError(
            f"The source {config.name!r} has no address.",
            mend=f"Set sources.{config.name}.url to a file or a database, or give --posts.",
        )
    text = address.reveal()
    if "://" in text and not text.startswith("file://"):
        from tuneproof.sources.databases import open_sql

        return open_sql(config)
    return _open_file(config, Path(text.removeprefix("file://")).expanduser())


def _open_file(config: SourceConfig, path: Path) -> Source:
    kind = _FILES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{str(path)!r} is neither a database address nor a file that can be read.",
            mend="Posts come from .parquet, .csv and .jsonl files, or from postgresql://… or "
            "sqlite:///….",
        )
    if not path.exists():
        raise DataError(f"The file {str(path)!r} does not exist.", mend="Check the path.")
    from tuneproof.sources import files

    kinds: dict[str, Callable[[SourceConfig, Path], Source]] = {
        "parquet": files.ParquetSource,
        "jsonl": files.JsonLinesSource,
        "csv": files.CsvSource,
    }
    return kinds[kind](config, path)
