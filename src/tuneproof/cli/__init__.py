"""The command line: parse, call the service, print. It knows no more than the service tells.

`main` names the commands; each lives in a module that is imported when it is run, so that
`tuneproof --help` starts fast. `options` are those of every command, `output` is how things
look, `service` finds the running service or opens one in this process. Exit codes: 0 done,
1 failed, 2 wrong usage, 3 waits for a person.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

__all__ = ["main"]

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("demo:demo", "Watch a whole turn of the loop on simulated users: two minutes or so."),
    "init": ("system:init", "Write a settings file to start from."),
    "serve": ("serve:serve", "Run the service: the loop, its API, the gateway."),
    "gateway": ("serve:gateway", "Answer applications beside a service that may restart."),
    "status": ("system:status", "All pipelines at a glance."),
    "doctor": ("system:doctor", "Check everything, and say how to mend what is wrong."),
    "migrate": ("migrating:migrate", "Move to another model; or the database to this schema."),
    "manifests": ("manifests:manifests", "Print what kubectl applies, without Helm."),
    "rollback": ("rollouts:rollback", "Return a task to its old model, now."),
    "backup": ("backups:backup", "Save everything to one file, while the service runs."),
    "restore": ("backups:restore", "Put a backup into an empty data directory."),
}
_GROUPS: Mapping[str, tuple[str, Mapping[str, tuple[str, str]]]] = {
    "run": (
        "Runs: one turn of the loop each.",
        {
            "start": ("runs:start", "Start a run."),
            "list": ("runs:list_", "All runs, newest first."),
            "show": ("runs:show", "Where a run stands."),
            "logs": ("runs:logs", "What a run did, line by line."),
            "abort": ("runs:abort", "End a run; its job is cancelled."),
            "retry": ("runs:retry", "Take a failed run up again."),
        },
    ),
    "experiment": (
        "Experiments: a candidate against a baseline.",
        {
            "create": ("experiments:create", "Declare an experiment of two models."),
            "list": ("experiments:list_", "All experiments, newest first."),
            "show": ("experiments:show", "What an experiment shows."),
            "plan": ("experiments:plan", "What this traffic finds, and when, before a run."),
            "shadow": ("experiments:shadow", "What shadow traffic of a task showed."),
            "end": ("experiments:end", "End an experiment before its time."),
        },
    ),
    "rollout": (
        "Rollouts: the stepwise move of traffic.",
        {
            "list": ("rollouts:list_", "All rollouts, newest first."),
            "show": ("rollouts:show", "Where a rollout stands."),
            "pause": ("rollouts:pause", "Keep the share as it is."),
            "resume": ("rollouts:resume", "Go on after a pause."),
            "advance": ("rollouts:advance", "Take the next step now."),
        },
    ),
    "models": ("Versions.", {"list": ("data:models", "All versions with their lineage.")}),
    "prompt": (
        "Prompts, where variants own them.",
        {
            "add": ("prompts:add", "Keep a prompt under the hash of its content."),
            "list": ("prompts:list_", "All prompts, newest first."),
            "show": ("prompts:show", "A prompt, whole."),
        },
    ),
    "data": ("Datasets.", {"export": ("data:export", "What a run's dataset is made of.")}),
    "posts": (
        "Posts.",
        {
            "import": ("data:import_posts", "Load a file of posts into a table."),
            "check": (
                "data:check_posts",
                "What a run would make of the posts, up to ten examples.",
            ),
        },
    ),
    "events": (
        "Exposures and outcomes.",
        {
            "import": ("data:import_events", "Send a file of events (JSON lines)."),
            "tail": ("data:tail", "The newest events, as they come."),
        },
    ),
    "token": ("Bearer tokens.", {"create": ("system:token", "Make a token; it is shown once.")}),
    "config": ("Settings.", {"check": ("system:config", "What holds, and where it came from.")}),
}

_COLLECT_AFTER = (10_000, 20, 20)
"""Garbage is collected less often than Python does by itself: what a command loads stays, and
looking through it over and over is a tenth of the time that it takes to begin."""


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(*_COLLECT_AFTER)
    sys.exit(run(list(sys.argv[1:] if tokens is None else tokens)))


def run(tokens: list[str]) -> int:
    """Run one command; its exit code."""
    from cyclopts import CycloptsError

    if set(tokens) == {"--version", "--json"}:
        return _version_as_json()
    tokens = _command_first(tokens)
    try:
        result = _app()(
            tokens, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:
        from tuneproof.cli.output import usage_error

        return usage_error(error, tokens)
    except KeyboardInterrupt:
        print(f"Interrupted. {_after_interrupt(tokens)}", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        return _closed_pipe()
    except Exception as error:
        from tuneproof.cli.output import failure

        return failure(error, as_json="--json" in tokens)
    return result if isinstance(result, int) else 0


_WITH_VALUE = ("--dir", "--config", "--url", "--token")
_WITHOUT = ("--json", "--yes", "-y")
"""The options of every command, as they may stand before it."""


def _command_first(tokens: list[str]) -> list[str]:
    """Tokens with the options of every command moved behind the command that they stand before."""
    at = 0
    while at < len(tokens):
        name, equals, _ = tokens[at].partition("=")
        if name in _WITH_VALUE:
            at += 1 if equals else 2
        elif tokens[at] in _WITHOUT:
            at += 1
        else:
            break
    given, rest = tokens[:at], tokens[at:]
    if rest[:1] and rest[0] in _GROUPS:
        rest = [rest[0], *_command_first(rest[1:])]
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *given, *rest[end:]] if rest else []


def _after_interrupt(tokens: Sequence[str]) -> str:
    """How what was interrupted goes on."""
    if list(tokens[:2]) in (["run", "start"], ["run", "retry"]):
        return "The run goes on with `tuneproof serve`."
    return "Run the same command again: it goes on."


def _version_as_json() -> int:
    from tuneproof.cli.output import data
    from tuneproof.cli.version import version

    data({"version": version()})
    return 0


def _closed_pipe() -> int:
    """Whoever read our output left, as `head` does; say nothing more."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _app() -> App:
    from cyclopts import App, Parameter

    from tuneproof.cli.options import finite
    from tuneproof.cli.version import version

    app = App(
        name="tuneproof",
        help="Your production outcomes train your next model, and no model reaches all your "
        "users before it has proven itself.",
        version=version,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(validator=finite),
    )
    for name, (path, help) in _COMMANDS.items():
        app.command(f"tuneproof.cli.{path}", name=name, help=help)
    for name, (help, commands) in _GROUPS.items():
        group = App(name=name, help=help, help_format="plaintext")
        for inner, (path, text) in commands.items():
            group.command(f"tuneproof.cli.{path}", name=inner, help=text)
        app.command(group)
    return app
