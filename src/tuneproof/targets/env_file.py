"""An env file that an application reads at its start, or a supervisor watches."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneproof.errors import DataError, RetryableError
from tuneproof.prompts import Prompt
from tuneproof.rollout import Routing
from tuneproof.targets.variables import SWITCH_AT, check_switch, observed, variables

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=(.*)")
_PLAIN = re.compile(r"[\w./:@%+=,-]*")


class EnvFileTarget:
    """Keeps a task's variables in an env file; all other lines stay as they are.

    The file is replaced whole (temporary file, fsync, rename), so a reader never sees half of
    it, and is left alone when nothing changed. Its mode is kept; a new one is 0644.
    With `prompts` the variables name prompts too; what they say is in `FILE.prompts/HASH.json`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "envfile",
        switch_at: float = SWITCH_AT,
        prompts: bool = False,
    ) -> None:
        self.name = name
        self.prompts = prompts
        self._path = Path(path)
        self._switch_at = check_switch(switch_at)

    async def apply(self, routing: Routing) -> None:
        """Write this routing. Raises `RetryableError` where the file cannot be written."""
        wanted = variables(routing, switch_at=self._switch_at, prompts=self.prompts)
        await asyncio.to_thread(self._apply, wanted)

    async def keep(self, prompts: Mapping[str, Prompt]) -> None:
        """Write a file of each prompt. Raises `RetryableError` where one cannot be written."""
        await asyncio.to_thread(self._keep, prompts)

    def _keep(self, prompts: Mapping[str, Prompt]) -> None:
        folder = self._path.with_name(f"{self._path.name}.prompts")
        try:
            for hash, prompt in prompts.items():
                if not (folder / f"{hash}.json").exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    self._replace(prompt.canonical, folder / f"{hash}.json")
        except OSError as error:
            raise RetryableError(
                f"The prompts in {folder} cannot be written: {error}.",
                mend="Check that it is writable for this process.",
            ) from error

    async def observe(self, task: str) -> Mapping[str, Any] | None:
        """What the file says about the task; None where it says nothing."""
        return observed(await asyncio.to_thread(self._read), task)

    def _apply(self, wanted: Mapping[str, str]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                old = self._text()
                new = _merged(old, wanted)
                if new != old:
                    self._replace(new)
        except OSError as error:
            raise RetryableError(
                f"The env file {self._path} cannot be written: {error}.",
                mend="Check that its folder exists and is writable for this process.",
            ) from error

    def _read(self) -> dict[str, str]:
        try:
            lines = self._text().split("\n")
        except OSError as error:
            raise RetryableError(
                f"The env file {self._path} cannot be read: {error}.",
                mend="Check that it is readable for this process.",
            ) from error
        found = (_LINE.match(line) for line in lines)
        return {match[1]: _unquoted(match[2]) for match in found if match}

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError as error:
            raise DataError(
                f"The env file {self._path} is not UTF-8: {error}.", mend="Save it as UTF-8."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, in all processes: tasks share the file."""
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _replace(self, text: str, path: Path | None = None) -> None:
        target = (path or self._path).resolve()  # a link stays a link
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _merged(text: str, wanted: Mapping[str, str]) -> str:
    """`text` with the wanted variables: changed where they stand, the rest at the end."""
    left = dict(wanted)
    lines = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        match = _LINE.match(line)
        name = match[1] if match else None
        if name not in wanted:
            lines.append(line)
        elif name in left:  # a second line of the same name is dropped
            prefix = "export " if line.lstrip().startswith("export") else ""
            lines.append(f"{prefix}{name}={_quoted(left.pop(name))}")
    lines += [f"{name}={_quoted(value)}" for name, value in left.items()]
    return "".join(f"{line}\n" for line in lines)


def _quoted(value: str) -> str:
    """A value as shells and dotenv readers both take it."""
    if _PLAIN.fullmatch(value):
        return value
    if re.search(r"['\x00-\x1f\x7f-\x9f\u2028\u2029]", value):
        raise DataError(
            f"The value {value!r} cannot stand in an env file: it has a quote or a line break.",
            mend="Use a salt and model names without them.",
        )
    return f"'{value}'"


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text.split(" #", 1)[0].rstrip()
