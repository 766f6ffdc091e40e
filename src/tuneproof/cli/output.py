"""How things look: data on stdout, prose on stderr, JSON where it was asked for.

Text from models, users and providers is printed as text: no markup, no control characters.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuneproof.errors import ConfigError, DeniedError, NotFoundError, RetryableError, TuneProofError

if TYPE_CHECKING:
    from cyclopts import CycloptsError

OK, FAILED, USAGE, WAITS = 0, 1, 2, 3
"""Exit codes. `WAITS`: nothing failed, but a person must decide."""

UNFOLDED = 10_000
"""How wide what is no terminal is taken to be."""

MIN_COLUMN = 30
"""How wide a table's column is at least where what it holds is wider."""

_STYLES = {
    "ok": "green",
    "healthy": "green",
    "success": "green",
    "complete": "green",
    "completed": "green",
    "promote": "green",
    "warning": "yellow",
    "degraded": "yellow",
    "paused": "yellow",
    "holding": "cyan",
    "running": "cyan",
    "stepping": "cyan",
    "in_progress": "cyan",
    "failed": "red",
    "unhealthy": "red",
    "rejected": "red",
    "reject": "red",
    "invalid": "red",
    "rolled_back": "red",
    "aborted": "red",
}


def out() -> Console:
    """Where data goes. Where that is no terminal nothing is folded: a row stays one line."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = shutil.get_terminal_size((UNFOLDED, 0)).columns  # COLUMNS, where it is set
    return console


def err() -> Console:
    """Where prose goes."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """A line of prose."""
    err().print(Text(clean(text)), soft_wrap=True)


def data(value: Any) -> None:
    """A value as JSON on stdout."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=str, allow_nan=False)
    sys.stdout.write("\n")


def line(value: Any) -> None:
    """A value as one line of JSON on stdout, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Rows as a table on stdout; words that are states get their colour.

    Where the terminal is too narrow for that, each row is told as names and values.
    """
    console, kept = out(), [[cell(value) for value in row] for row in rows]
    if _fits(columns, kept, console.width):
        console.print(as_table(columns, kept, title=title))
        return
    for row in kept:
        pairs = zip(columns, row, strict=True)
        console.print(as_facts((name, value) for name, value in pairs if value.plain))
        console.print()


def _fits(columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> bool:
    """Whether each column has room for what it holds, a long text for `MIN_COLUMN` of it."""
    wanted = [
        max(len(column), *(min(row[i].cell_len, MIN_COLUMN) for row in rows), 0)
        for i, column in enumerate(columns)
    ]
    return sum(wanted) + 2 * (len(columns) - 1) <= width


def as_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> Table:
    """Rows as a table."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def listing(rows: Iterable[Sequence[str]]) -> None:
    """Rows as lines, the first column as wide as it must be, nothing folded: easy to grep."""
    kept = [[clean(part) for part in row] for row in rows]
    width = max((len(row[0]) for row in kept), default=0)
    for first, *rest in kept:
        text = f"{first:{width}}  " + "  ".join(rest)
        out().print(text.replace("\n", "\\n"), soft_wrap=True)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values below each other; what is not known is left out."""
    out().print(as_facts(pairs))


def as_facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Names and values below each other, as a table."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, "", [], {}):
            made.add_row(Text(name, "dim"), cell(value))
    return made


def cell(value: Any) -> Text:
    """A value as a table shows it."""
    if isinstance(value, Text):
        return value
    text = clean(shown(value))
    return Text(text, _STYLES.get(text, ""))


def shown(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(v) for v in value)
    return str(value)


def percent(share: Any) -> str:
    """A share as percent, or a dash."""
    return f"{share * 100:.3g} %" if isinstance(share, int | float) else "–"


def signed(share: Any) -> str:
    """A relative change as signed percent, or a dash."""
    if not isinstance(share, int | float):
        return "–"
    return f"{share * 100:+.1f} %".replace("-", "−")


def variant(model: Mapping[str, Any]) -> str:
    """A model, and by which prompt it is asked where variants own that."""
    prompt = model.get("prompt")
    return str(model["model_id"]) if prompt is None else f"{model['model_id']} with {prompt}"


def moment(at: Any) -> str:
    """An instant as the service writes it, shortened."""
    text = str(at) if at else "–"
    return text[:16].replace("T", " ") + " UTC" if len(text) >= 16 else text


def clean(text: str) -> str:
    """Text without control characters, which could drive a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that is not easily undone.

    Raises `ConfigError` (exit 2) where there is no terminal and no `--yes`; `SystemExit` when
    the answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(
            f"This needs a yes, and there is no terminal to ask: {question}",
            mend="Say it with --yes.",
        )
    err().print(Text(f"{clean(question)} [y/N] "), end="")
    if input().strip().lower() not in ("y", "yes"):
        say("Nothing was changed.")
        raise SystemExit(FAILED)


def failure(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong and what to do next: its mend, or else a command; the exit code."""
    if not isinstance(error, TuneProofError):
        from rich.traceback import Traceback

        err().print(Traceback.from_exception(type(error), error, error.__traceback__))
        say("This is a defect of TuneProof. Run: tuneproof doctor")
        return FAILED
    if as_json:
        body = {"type": error.slug, **error.to_dict()}
        sys.stderr.write(json.dumps({"error": body}, ensure_ascii=False, default=str) + "\n")
    else:
        err().print(Text("Error: ", "bold red") + Text(clean(error.message)), soft_wrap=True)
        say(error.mend or f"Run: {_next(error)}")
    return USAGE if isinstance(error, ConfigError) else FAILED


def _next(error: TuneProofError) -> str:
    """A command that helps after this error."""
    if isinstance(error, ConfigError):
        return "tuneproof config check"
    if isinstance(error, DeniedError):
        return "tuneproof token create NAME --scope write"
    if isinstance(error, NotFoundError):
        return "tuneproof status"
    if isinstance(error, RetryableError):
        return "tuneproof doctor"
    run = error.details.get("run_id")
    return f"tuneproof run show {run}" if run else "tuneproof doctor"


def usage_error(error: CycloptsError, tokens: Sequence[str]) -> int:
    """Say what was wrong with the command line; the exit code."""
    from tuneproof.cli import _COMMANDS, _GROUPS

    err().print(Text("Error: ", "bold red") + Text(clean(str(error))), soft_wrap=True)
    known = [token for token in tokens[:1] if token in _COMMANDS or token in _GROUPS]
    if known and known[0] in _GROUPS and tokens[1:2] and tokens[1] in _GROUPS[known[0]][1]:
        known.append(tokens[1])
    say(f"Run: {' '.join(['tuneproof', *known, '--help'])}")
    return USAGE
