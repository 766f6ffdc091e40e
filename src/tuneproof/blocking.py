"""The components with methods that block, for programs without an event loop.

    from tuneproof.blocking import FineTuningPipeline, PipelineConfig

    result = FineTuningPipeline(config=PipelineConfig()).run()

There is no second implementation: each class here holds the asynchronous component of its name and
runs its methods in one event loop, which lives in a thread of its own for as long as the process.
Constructors, arguments, results and errors are those of the components; what needs no waiting is
handed through. An interrupt (Ctrl-C) cancels the call that is waited for.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from inspect import iscoroutinefunction, isfunction, ismethod
from typing import Any, Self, TypeVar

from tuneproof.errors import StateError

_NAMES = (
    "CircuitBreaker",
    "ConnectionPoolManager",
    "DataCollector",
    "DeploymentManager",
    "FineTuningPipeline",
    "KubernetesOptimizedPipeline",
    "MLflowExperimentTracker",
    "MLflowModelRegistry",
    "ModelEvaluator",
    "ModelTrainer",
    "PipelineConfig",
    "Settings",
)

__all__ = list(_NAMES)

T = TypeVar("T")

_SAME = ("PipelineConfig", "Settings")
"""What has nothing to wait for."""


class _Loop:
    """One event loop in a thread of its own; made at its first use, and anew in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises, once it has."""
        loop = self._running()
        if threading.current_thread().name == _NAME:
            call.close()
            raise StateError(
                "A blocking method was called from the loop that would have to run it.",
                mend="Await the asynchronous one there: it has the same name in `tuneproof`.",
            )
        future = asyncio.run_coroutine_threadsafe(call, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # nothing, unless it was the waiting that ended
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name=_NAME, daemon=True).start()
            return self._loop


_NAME = "tuneproof-blocking"
_LOOP = _Loop()


class _Blocking:
    """Holds a component; what it has is handed through, its coroutine methods block."""

    _inner: Any

    @classmethod
    def _around(cls, inner: Any) -> Self:
        """A twin of a component that is there already."""
        made = cls.__new__(cls)
        made._inner = inner
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return f"blocking {self._inner!r}"


def _blocking(method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    @wraps(method)
    def run(self: _Blocking, /, *args: Any, **kwargs: Any) -> T:
        return _LOOP.run(method(self._inner, *args, **kwargs))

    return run


def _forwarding(method: Callable[..., T]) -> Callable[..., T]:
    @wraps(method)
    def run(self: _Blocking, /, *args: Any, **kwargs: Any) -> T:
        return method(self._inner, *args, **kwargs)

    return run


def _making(method: Callable[..., Any]) -> Any:
    @wraps(method)
    def make(cls: type[_Blocking], /, *args: Any, **kwargs: Any) -> _Blocking:
        return cls._around(method(*args, **kwargs))

    return classmethod(make)


@contextmanager
def _opened(self: _Blocking) -> Iterator[_Blocking]:
    """The same with all that it needs open, until the block ends."""
    inside = self._inner.opened()
    twin = self._around(_LOOP.run(inside.__aenter__()))
    try:
        yield twin
    finally:
        _LOOP.run(inside.__aexit__(None, None, None))


def _method(name: str, method: Any) -> Any:
    """What stands for a public attribute of a component's class; None: it is handed through."""
    if name == "opened":
        return _opened
    if iscoroutinefunction(method):
        return _blocking(method)
    if ismethod(method):
        return _making(method)
    return _forwarding(method) if isfunction(method) else None


def _twin(component: type[Any]) -> type[Any]:
    """The class whose objects hold one of `component`."""
    public = (name for name in dir(component) if not name.startswith("_"))
    found = {name: _method(name, getattr(component, name)) for name in public}
    methods = {name: method for name, method in found.items() if method is not None}
    about = f"{component.__name__} of `tuneproof`, with methods that block."
    names = {"__init__": _init(component), "__doc__": about, "__module__": __name__, **methods}
    return type(component.__name__, (_Blocking,), names)


def _init(component: type[Any]) -> Callable[..., None]:
    @wraps(component.__init__)
    def init(self: _Blocking, /, *args: Any, **kwargs: Any) -> None:
        self._inner = component(*args, **kwargs)

    return init


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    component = getattr(import_module("tuneproof"), name)
    globals()[name] = component if name in _SAME else _twin(component)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
