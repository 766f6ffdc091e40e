"""The bill names every package of the lock; an audit that nobody answered is never green."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving
from tools.audit import audit, main
from tools.sbom import bill, locked

ROOT = Path(__file__).parents[3]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_bill_has_every_package_of_the_lock_with_its_hashes_and_is_the_same_again() -> None:
    made = bill(locked(LOCK), PROJECT)
    names = {(one["name"], one["version"]) for one in made["components"]}
    lines = [line.split(" ")[0] for line in LOCK.splitlines() if "==" in line and line[0] != " "]
    assert {tuple(line.split("==")) for line in lines} == names
    assert made["bomFormat"] == "CycloneDX"
    hashes = [p for one in made["components"] for p in one["properties"] if "sha256" in p["name"]]
    assert len(hashes) == LOCK.count("--hash=sha256:")
    refs = [one["bom-ref"] for one in made["components"]]
    assert len(set(refs)) == len(refs)
    assert made == bill(locked(LOCK), PROJECT)


def test_a_line_that_is_not_understood_is_no_silence() -> None:
    with pytest.raises(ValueError, match="line 1 of the lock"):
        locked("git+https://example.com/x.git")


def test_an_audit_is_red_where_something_is_known_and_where_nobody_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer(request: Request) -> JSONResponse:
        asked = (await request.json())["queries"]
        known = [{"vulns": [{"id": "X-1"}]} if q["package"]["name"] == "bad" else {} for q in asked]
        return JSONResponse({"results": known if len(asked) < 3 else []})

    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    good, bad = ("good", "1", "", ()), ("bad", "2", "", ())
    with serving(Starlette(routes=[Route("/v1", answer, methods=["POST"])]), port):
        assert audit([good], url)[0] == 0
        assert audit([good, bad], url) == (1, ["bad 2: X-1"])
        assert audit([good, good, good], url)[0] == 2
    lock = tmp_path / "lock"
    lock.write_text("good==1\n")
    assert main(str(lock), url) == 2
    assert capsys.readouterr().out.startswith("not run: ")
    assert json.dumps(audit([], url)) == '[2, ["not run: the lock has no packages"]]'
