"""Calls in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from tuneproof.resilience import in_daemon_thread


async def test_result_and_error_are_the_functions_own() -> None:
    assert await in_daemon_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(divmod, 7, 0)


async def test_call_that_takes_too_long_is_given_up_and_goes_on() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def call() -> None:
        go_on.wait()
        ended.set()

    with pytest.raises(TimeoutError):
        await in_daemon_thread(call, timeout_s=0.01)
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 60)


def test_process_ends_while_a_call_hangs() -> None:
    program = (
        "import asyncio, threading\n"
        "from tuneproof.resilience import in_daemon_thread\n"
        "async def main():\n"
        "    task = asyncio.create_task(in_daemon_thread(threading.Event().wait))\n"
        "    await asyncio.sleep(0)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0
