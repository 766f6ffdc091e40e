"""What the docs give to systemd and Compose: commands that it takes, files that exist."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import yaml

from tuneproof_trainer.cli import app

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "run-the-trainer.md").read_text("utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def served(arguments: list[str]) -> dict[str, object]:
    command, bound, _ = app.parse_args(arguments, exit_on_error=False)
    assert command.__name__ == "serve"
    return bound.arguments


def test_the_unit_starts_a_server_in_its_own_state_folder() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/tuneproof-trainer")
    assert served(arguments)["dir"] == Path("/var/lib") / service["StateDirectory"]
    assert int(service["TimeoutStopSec"]) > 20, "the server drains for so long"


def test_the_compose_file_builds_what_is_there_and_serves_from_its_volume() -> None:
    trainer = yaml.safe_load(block("yaml"))["services"]["trainer"]
    assert (ROOT / trainer["build"]["dockerfile"]).exists()
    (volume,) = trainer["volumes"]
    assert served(trainer["command"])["dir"] == Path(volume.partition(":")[2])
