"""One change at a time, in the memory of a forked process, against the tests that call it.

A change within a function, or of a constant, is put into the module that is imported already: the
tests are collected once. What makes another class is put in before the module is imported. It
knows neither which changes there are nor what becomes of a finding.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import pytest

from tools.mutants import ROOT, SOURCE, TESTS, Mutant, dotted, files_of

SURVIVED, KILLED, BROKEN = 0, 1, 70
"""Exit statuses of a mutant's process. What the tool itself does wrong is none of a test's."""

WARM = ("hypothesis", "numpy", "pydantic", "scipy.integrate", "scipy.stats", "sqlalchemy")
"""What is slow to import and never changed: imported once, before all forks."""

PATIENCE_S = 60.0
"""Beyond ten times what the tests take, so that a busy machine kills nothing."""

OPTIONS = ("-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")


def warm() -> None:
    """Import what all processes need, and settle what they draw."""
    for name in WARM:
        importlib.import_module(name)
    settle_hypothesis()


def settle_hypothesis() -> None:
    """The same examples each time, and none made smaller: that one fails is enough."""
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutate", derandomize=True, database=None, phases=phases)
    settings.load_profile("mutate")


# --- a change that makes another class ----------------------------------------------------


class _Changed(SourceFileLoader):
    """Loads one module from a changed source."""

    def __init__(self, name: str, mutant: Mutant) -> None:
        super().__init__(name, str(ROOT / SOURCE / mutant.path))
        self._text = mutant.text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec", dont_inherit=True)


class _Finder:
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != dotted(self._mutant.path):
            return None
        loader = _Changed(name, self._mutant)
        return spec_from_file_location(name, loader.path, loader=loader)


def import_changed(mutant: Mutant, pipe: int) -> int:
    """Import everything with the mutant, and run all its tests. Nothing of ours is imported yet."""
    sys.meta_path.insert(0, _Finder(mutant))
    status = pytest.main([*OPTIONS, *files_of([mutant.path])], plugins=[Reporter(pipe)])
    return SURVIVED if status == 0 else KILLED


class Reporter:
    """Says which test failed, and ends the process."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self._pipe, report.nodeid.encode()[:2000])
            os._exit(KILLED)


# --- a change within a function, or of a constant -----------------------------------------


Body = Callable[[int], int]
"""What a forked process does: it writes to a pipe what it has to say, and answers its status."""

Begin = Callable[[Mutant, Body, float], None]
"""Begins the process of a mutant, which may take so many seconds."""


class Session:
    """A plugin: takes the place of pytest's loop over the collected tests."""

    def __init__(self, mutants: Sequence[Mutant], begin: Begin) -> None:
        self._mutants, self._begin = mutants, begin

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise SystemExit("The tests cannot be collected, without any change.")
        calls = calls_of(session.items)
        for mutant in self._mutants:
            files = {str(ROOT / test) for test in files_of([mutant.path])}
            callers = [
                (seconds, item)
                for item, (seconds, called) in zip(session.items, calls, strict=True)
                if str(item.path) in files
                and (not mutant.scope or (mutant.path, mutant.scope) in called)
            ]
            callers.sort(key=lambda pair: pair[0])
            chosen = [item for _, item in callers]
            limit_s = PATIENCE_S + 10 * sum(seconds for seconds, _ in callers)
            self._begin(mutant, _with_changed_function(mutant, chosen), limit_s)
        return True


def _with_changed_function(mutant: Mutant, items: Sequence[pytest.Item]) -> Body:
    def body(pipe: int) -> int:
        try:
            twin = twin_of(mutant)
        except Exception as error:
            os.write(pipe, f"import: {error!r}".encode()[:2000])
            return KILLED
        put_in(mutant, twin)
        if items:
            items[0].config.pluginmanager.register(Reporter(pipe))
        run(items)
        return SURVIVED

    return body


def run(items: Sequence[pytest.Item], around: Callable[[], object] | None = None) -> None:
    """Run these, as pytest's own loop does."""
    for item, following in zip_longest(items, items[1:]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if around is not None:
            around()


def twin_of(mutant: Mutant) -> ModuleType:
    """The changed module beside the one that is in use. Raises what it raises when imported."""
    module = importlib.import_module(dotted(mutant.path))
    twin = ModuleType(module.__name__)
    twin.__dict__.update(__file__=module.__file__, __package__=module.__package__)
    exec(compile(mutant.text, str(module.__file__), "exec", dont_inherit=True), twin.__dict__)
    return twin


def put_in(mutant: Mutant, twin: ModuleType) -> None:
    """Change the module in use: one function's code and defaults, or its constants."""
    module = importlib.import_module(dotted(mutant.path))
    if not mutant.scope:
        for name in _constants(module):
            _rebind(name, vars(module)[name], vars(twin)[name])
        return
    ours, changed = _function(module, mutant.scope), _function(twin, mutant.scope)
    ours.__code__ = changed.__code__
    ours.__defaults__, ours.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__


def _constants(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("__") and not isinstance(value, type | FunctionType | ModuleType)
    ]


def _rebind(name: str, old: object, new: object) -> None:
    """Give all that imported a constant the changed one."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def _function(module: ModuleType, scope: str) -> FunctionType:
    holder: object = module
    for name in scope.split("."):
        holder = vars(holder)[name]
        if isinstance(holder, property):
            holder = holder.fget
        elif isinstance(holder, cached_property):
            holder = holder.func
        elif isinstance(holder, staticmethod | classmethod):
            holder = holder.__func__
    assert isinstance(holder, FunctionType), f"{scope} of {module.__name__} is {holder!r}"
    return holder


Calls = tuple[float, set[tuple[str, str]]]
"""How long a test took, and which functions it called: (path, qualified name)."""


def calls_of(items: Sequence[pytest.Item]) -> list[Calls]:
    """Run each without any change, in a process of its own. Ends the tool where one fails."""
    found = ROOT / ".mutate" / f"calls-{os.getpid()}.json"
    pid = os.fork()
    if pid == 0:
        _write_calls(items, found)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("The test above is red without any change.")
    written = json.loads(found.read_text())
    found.unlink()
    return [(seconds, {(path, name) for path, name in called}) for seconds, called in written]


def _write_calls(items: Sequence[pytest.Item], path: Path) -> None:
    ours = {str(ROOT / SOURCE / name): name for name in TESTS}
    called: set[tuple[str, str]] = set()
    rows: list[tuple[float, list[tuple[str, str]]]] = []
    began = time.monotonic()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename in ours:
            called.add((ours[code.co_filename], code.co_qualname.partition(".<locals>")[0]))

    def ended() -> None:
        nonlocal began
        rows.append((time.monotonic() - began, sorted(called)))
        called.clear()
        began = time.monotonic()

    status = 1
    try:
        items[0].config.pluginmanager.register(Reporter(2))
        sys.setprofile(profile)
        run(items, ended)
        path.write_text(json.dumps(rows))
        status = 0
    finally:
        os._exit(status)
