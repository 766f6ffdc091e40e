"""Tables of `docs/reference`, of settings and declarations, made from what their fields say.

`python -m tuneproof.settings.reference PAGE` writes them into the page, between its markers
`<!-- settings: NAME -->` and `<!-- end -->`; a test compares. It knows no prose.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneproof.settings import environment, layers, tables
from tuneproof.settings.declaration import Declaration
from tuneproof.settings.fields import Option, options
from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.records import key_variable

_BLOCK = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

_SERVICE = (
    *("store", "cache", "files", "breakers", "tracking", "server"),
    *("relay", "alerts", "outgoing", "remote", "kubernetes"),
)


def written(page: str) -> str:
    """The page with its tables as they are now. Raises `KeyError` for a marker of none."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}{TABLES[found[2]]()}\n{found[3]}"

    return _BLOCK.sub(block, page)


def markdown(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def pipelines() -> str:
    """Each field of a pipeline; a star marks what no request may set."""

    def rows() -> Iterator[Sequence[str]]:
        for option in sorted(options(PipelineConfig), key=_by_section):
            name = f"`{option.name}`{'' if option.by_request else '*'}"
            yield name, _places(option), option.default_text, option.doc

    return markdown(("field", "in the file", "default", "meaning"), rows())


_SECTIONS = ("", "data_collection", "training", "gate", "evaluation", "deployment", "schedule")


def _by_section(option: Option) -> int:
    return _SECTIONS.index(option.section)


def _places(option: Option) -> str:
    if option.name == "name":
        return "the table's name"
    return ", ".join(f"`{_shortened(path, option.name)}`" for path in option.paths)


def _shortened(path: str, name: str) -> str:
    """A path in the file; one that ends on the field's own name without that name."""
    section, _, key = path.rpartition(".")
    return f"{section}." if section and key == name else path


def named() -> str:
    """Each field of the tables of which there is one for each name, but for pipelines."""
    records = {f"{table}.NAME": r for table, r in tables.NAMED.items() if table != "pipelines"}
    return _tables(records)


def service() -> str:
    """Each field of the tables of which there is one."""
    adapters = "`store`, `source`, `provider`, `target`, `tracker`, `cache`, `trainer`, `app`"
    last = (
        f"| `[adapters]` | a kind | ours | the dotted name of what makes it: {adapters}; "
        "[how](../how-to/extend.md) |"
    )
    return f"{_tables({name: tables.SINGLE[name] for name in _SERVICE})}\n{last}"


def _tables(records: Mapping[str, type[Any]]) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for table, record in records.items():
            head = f"`[{table}]`"
            for option in options(record):
                if option.name != "name" and option.takes_rest_of is None:
                    place = option.paths[0] if option.section else option.name
                    yield head, f"`{place}`", option.default_text, option.doc
                    head = ""

    return markdown(("table", "field", "default", "meaning"), rows())


def variables() -> str:
    """Each variable of the environment, with what it sets."""
    api_key = dict(tables.settings())["providers.default.api_key"]
    found = {
        **tables.variables(),
        key_variable("openai"): ("providers.default.api_key", api_key),
    }

    def rows() -> Iterator[Sequence[str]]:
        yield f"`{environment.DIRECTORY}`", "`dir`", f"`./{layers.DEFAULT_DIR}`"
        yield f"`{environment.FILE}`", "`file`", f"`{layers.FILE_NAME}`"
        for name, (path, option) in sorted(found.items()):
            yield f"`{name}`", f"`{path}`", option.default_text

    return markdown(("variable", "setting", "default"), rows())


def request() -> str:
    """Each option of a declaration, as a request has it."""

    def rows() -> Iterator[Sequence[str]]:
        for option in options(Declaration):
            holder = f"{option.within}." if option.within else ""
            yield f"`{holder}{option.request_key}`", f"`{option.name}`", option.doc

    return markdown(("field", "the setting that holds without it", "meaning"), rows())


def flags() -> str:
    """Each option of a declaration, as the command line has it."""

    def rows() -> Iterator[Sequence[str]]:
        for option in options(Declaration):
            yield f"`{option.cli_flag}`", f"`{option.name}`", option.doc

    return markdown(("option", "the setting that holds without it", "meaning"), rows())


TABLES: Mapping[str, Callable[[], str]] = {
    "pipelines": pipelines,
    "named": named,
    "service": service,
    "variables": variables,
    "request": request,
    "flags": flags,
}
"""Name in a marker -> what makes the table."""


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(written(page.read_text("utf-8")), encoding="utf-8")
