"""`tuneproof backup`, `restore`: the data directory in one file, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK
from tuneproof.cli.service import private_files

if TYPE_CHECKING:
    from tuneproof.app.archive import Manifest


def backup(file: Path, /, *, options: CommonOptions = NONE) -> int:
    """Save databases, datasets, models and waiting events to one file, while the service runs.

    Run it where the data directory is, as its owner. Of a store in PostgreSQL it takes what lies
    beside it: dump the database first (pg_dump), then take this.
    """
    from tuneproof.app.backup import back_up

    settings = options.settings()
    with private_files():
        made = back_up(settings, file, now=datetime.now(UTC), replace=options.yes)
    if options.json:
        output.data({"file": str(file), **_summary(made)})
    output.say(f"Wrote {file}: {_in_words(made)}.")
    if made.left_out:
        output.say(f"Left where they are: {', '.join(made.left_out)}.")
    if made.store == "postgresql":
        output.say("The database is not in it; a dump taken before it belongs to it: pg_dump.")
    return OK


def restore(file: Path, /, *, options: CommonOptions = NONE) -> int:
    """Put a backup into an empty data directory; the service that begins there goes on.

    The file is checked whole before anything is written. Stop the service that it was taken from
    first: two of them would do everything twice.
    """
    from tuneproof.app.restore import restore as put_back

    settings = options.settings()
    with private_files():
        made = put_back(settings, file)
    if options.json:
        output.data({"directory": str(settings.dir), **_summary(made)})
    output.say(f"Restored {settings.dir} as it was at {made.made_at}: {_in_words(made)}.")
    output.say("Its tokens hold as before. Next: tuneproof doctor, then tuneproof serve")
    return OK


def _summary(made: Manifest) -> dict[str, object]:
    found = made.to_dict()
    return {**found, "files": len(made.files), "bytes": made.bytes}


def _in_words(made: Manifest) -> str:
    return f"{len(made.files):,} files, {made.bytes / 1e6:,.1f} MB"
