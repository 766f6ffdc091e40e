"""The reference is complete and right, links lead somewhere, and every block says how it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.documents import PAGES, ROOT, RUNNABLE, blocks, unprinted

from tuneproof import App, Settings
from tuneproof.cli import _COMMANDS, _GROUPS
from tuneproof.errors import by_name
from tuneproof.server import create_app
from tuneproof.server.scopes import scopes
from tuneproof.settings import reference, tables
from tuneproof.telemetry import Metrics

REFERENCE = ROOT / "docs/reference"


def _text(name: str) -> str:
    return (REFERENCE / name).read_text("utf-8")


def _rows(text: str, heading: str) -> Iterator[list[str]]:
    """The cells of the tables below a heading, up to the next one of its level."""
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    found = next(part for part in section if part.startswith(heading))
    for line in found.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and not set("".join(cells)) <= set("-"):
            yield cells


def _shown(value: Any) -> str:
    """A default as the page writes it."""
    if value is None:
        return "`none`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(_shown(v).strip("`") for v in value) + "]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _differing(told: Mapping[str, Any], known: Mapping[str, Any], page: str) -> str:
    """What to mend where, for the message."""
    wrong = sorted(n for n in told.keys() & known.keys() if told[n] != known[n])
    return (
        f"{page}: describe {sorted(known.keys() - told.keys())}, "
        f"remove {sorted(told.keys() - known.keys())}, mend {[(n, known[n]) for n in wrong]}"
    )


# --- settings ---------------------------------------------------------------------------


def test_the_tables_of_settings_and_declarations_are_what_the_code_says() -> None:
    named: list[str] = []
    for name in ("settings.md", "rest.md", "cli.md"):
        page = _text(name)
        mend = f"run: python -m tuneproof.settings.reference docs/reference/{name}"
        assert reference.written(page) == page, mend
        named += re.findall(r"<!-- settings: (\w+) -->", page)
    assert sorted(named) == sorted(reference.TABLES)


def test_the_settings_page_names_every_setting_and_variable() -> None:
    page = _text("settings.md")
    for path, option in tables.settings():
        if option.name != "options":
            assert f"`{option.name}`" in page or f"`{option.paths[0]}`" in page, path
    for variable in tables.variables():
        assert f"| `{variable}` |" in page


# --- routes, commands, metrics, problems ----------------------------------------------------


async def test_every_route_is_described_with_its_scope(tmp_path: Path) -> None:
    async with App.open(Settings(dir=tmp_path), engine=False) as app:
        document = create_app(app).openapi()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    pairs = re.findall(r"^\| `([A-Z]+ /[^`]*)` \| (\w+) \|", _text("rest.md"), re.MULTILINE)
    known = dict.fromkeys(routes)
    told = dict.fromkeys(route for route, _ in pairs)
    assert told == known, _differing(told, known, "docs/reference/rest.md")
    assert len(pairs) == len(routes)
    async with App.open(Settings(dir=tmp_path / "again"), engine=False) as app:
        needed = scopes(create_app(app))
    named = {name.replace(":path}", "}"): scope for name, scope in needed.items()}
    assert dict(pairs) == {name: named[name] for name in routes}
    assert set(named) - set(routes) == {"GET /openapi.json", "GET /dashboard/style.css"}
    public = {
        f"{m.upper()} {p}" for p, o in document["paths"].items() for m in o if not _locked(o[m])
    }
    open_to_all = {route for route, scope in pairs if scope == "none"}
    assert open_to_all == {r for r in public if " /v1/" not in r}


def _locked(operation: dict[str, Any]) -> bool:
    return bool(operation.get("security"))


def test_every_command_is_described() -> None:
    told = re.findall(r"^\| `tuneproof ([a-z ]+?)(?: [A-Z]+)*` \|", _text("cli.md"), re.MULTILINE)
    groups = {f"{group} {name}" for group, (_, inner) in _GROUPS.items() for name in inner}
    known = dict.fromkeys({*_COMMANDS, *groups})
    assert len(told) == len(known), _differing(dict.fromkeys(told), known, "docs/reference/cli.md")
    assert set(told) == set(known), _differing(dict.fromkeys(told), known, "docs/reference/cli.md")


def test_every_metric_is_described() -> None:
    told = set(re.findall(r"`((?:fine_tuning|tuneproof)_\w+)`", _text("metrics.md")))
    lines = Metrics().render()[0].decode().splitlines()
    families = {line.split()[2] for line in lines if line.startswith("# HELP")}
    ours = {f for f in families if not f.startswith("process_") and not f.endswith("_created")}
    told -= {"fine_tuning_", "tuneproof_"}
    page = "docs/reference/metrics.md"
    assert told == ours, _differing(dict.fromkeys(told), dict.fromkeys(ours), page)


def test_every_problem_type_says_what_to_do() -> None:
    text = (ROOT / "docs/how-to/failed-runs.md").read_text("utf-8")
    told = {cells[0].strip("`"): cells[1].split(", ")[0] for cells in _rows(text, "Problem types")}
    told.pop("type")
    known = {cls("").slug: str(cls.status) for cls in by_name().values()}
    assert told == known, _differing(told, known, "docs/how-to/failed-runs.md")


# --- pages ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_say_whether_they_are_run(page: Path) -> None:
    for block in blocks(page):
        if block.language in RUNNABLE:
            assert block.is_run or re.fullmatch(r"not run: .+", block.mark), block.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_in_the_docs_are_settings(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            file = tmp_path / "tuneproof.toml"
            file.write_text(block.text, "utf-8")
            assert Settings.load(file=file, dir=tmp_path, env={}).dir == tmp_path


def test_output_is_compared_line_by_line_in_order() -> None:
    printed = "one  two\nthree 4.5 s\n"
    assert unprinted("one two\nthree ... s\n", printed) == ""
    assert unprinted("three ...\none two\n", printed) == "one two"
    assert unprinted("one\n", printed) == "one"
