"""A whole life of a trainer, request by request; whatever is answered is handed to `told`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
from tests.trainer.integration.conftest import BASE, ENDED, lines
from tests.waiting import until

__all__ = ["Life"]

Told = Callable[[str, str, httpx2.Response], None]
SCRIPTED = "scripted-1"
TALK = [{"role": "user", "content": "tips about sourdough"}]


class Life:
    """What clients do, all of it."""

    def __init__(self, url: str, told: Told) -> None:
        self._url, self._told = url, told
        self._client = httpx2.Client(timeout=60)

    def live(self) -> None:
        """Everything."""
        self.files()
        self.uploads()
        self.jobs()
        self.chats()
        self.mistakes()

    def _ask(self, method: str, path: str, **how: Any) -> Any:
        answer = self._client.request(method, self._url + path, **how)
        self._told(method, path.partition("?")[0], answer)
        kind = answer.headers.get("content-type", "")
        return answer.json() if kind.startswith("application/json") else answer

    def _upload(self, content: bytes, **fields: str) -> str:
        data = {"purpose": "fine-tune", **fields}
        made = self._ask("POST", "/files", data=data, files={"file": ("a.jsonl", content)})
        return str(made["id"])

    def files(self) -> None:
        self._ask("GET", "/files")
        file = self._upload(lines())
        lasting = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        self._upload(lines(), **lasting)
        self._ask("GET", f"/files/{file}")
        self._ask("GET", "/files?limit=1")
        self._ask("DELETE", f"/files/{file}")

    def uploads(self) -> None:
        asked = {"filename": "a.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl"}
        for end in ("complete", "cancel"):
            upload = self._ask("POST", "/uploads", json={**asked, "bytes": 4})["id"]
            part = self._ask(
                "POST", f"/uploads/{upload}/parts", files={"data": ("data", b"{}\n\n")}
            )
            body = {"json": {"part_ids": [part["id"]]}} if end == "complete" else {}
            self._ask("POST", f"/uploads/{upload}/{end}", **body)

    def jobs(self) -> None:
        self._ask("GET", "/fine_tuning/jobs")
        file, check = self._upload(lines()), self._upload(lines(count=20))
        asked = {
            "model": BASE,
            "training_file": file,
            "validation_file": check,
            "suffix": "conforming",
            "seed": 3,
            "metadata": {"task": "hook"},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        }
        whole = self._job(asked)
        self._job({"model": BASE, "training_file": file})
        self._job({"model": BASE, "training_file": self._upload(b"nonsense\n")})
        long = self._upload(lines(None, count=20_000))
        self._stopped({"model": BASE, "training_file": long, "hyperparameters": {"n_epochs": 50}})
        self._ask("GET", "/fine_tuning/jobs")
        model = whole["fine_tuned_model"]
        self._ask("GET", "/models")
        self._ask("GET", f"/models/{model}")
        self._ask("POST", "/chat/completions", json={"model": model, "messages": TALK})
        self._ask("DELETE", f"/models/{model}")

    def _job(self, asked: dict[str, Any]) -> dict[str, Any]:
        job = self._ask("POST", "/fine_tuning/jobs", json=asked)
        path = f"/fine_tuning/jobs/{job['id']}"

        def over() -> Any:
            found = self._ask("GET", path)
            return found if found["status"] in ENDED else None

        ended: dict[str, Any] = until(over)
        self._ask("GET", f"{path}/events?limit=100")
        self._ask("GET", f"{path}/checkpoints")
        return ended

    def _stopped(self, asked: dict[str, Any]) -> None:
        path = f"/fine_tuning/jobs/{self._ask('POST', '/fine_tuning/jobs', json=asked)['id']}"
        until(lambda: self._ask("GET", path)["status"] == "running")
        self._ask("POST", f"{path}/pause")
        until(lambda: self._ask("GET", path)["status"] == "paused")
        self._ask("POST", f"{path}/resume")
        self._ask("POST", f"{path}/cancel")
        self._ask("GET", f"{path}/events")

    def chats(self) -> None:
        asked = {"model": BASE, "messages": TALK, "seed": 3}
        for more in ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"max_tokens": 2}):
            self._ask("POST", "/chat/completions", json={**asked, **more})
            self._ask("POST", "/chat/completions", json={**asked, **more, "stream": True})
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        self._ask("POST", "/chat/completions", json={**asked, **usage})
        kept = {"store": True, "metadata": {"task": "hook"}, "temperature": 0.5}
        completion = self._ask("POST", "/chat/completions", json={**asked, **kept})["id"]
        path = f"/chat/completions/{completion}"
        self._ask("GET", "/chat/completions")
        self._ask("GET", path)
        self._ask("GET", f"{path}/messages")
        self._ask("POST", path, json={"metadata": {"outcome": "0.1"}})
        self._ask("DELETE", path)
        for kind in ("float", "base64"):
            texts = {"model": SCRIPTED, "input": ["a", "b c"], "encoding_format": kind}
            self._ask("POST", "/embeddings", json=texts)

    def mistakes(self) -> None:
        self._ask("GET", "/files/file-none")
        self._ask("GET", "/fine_tuning/jobs/ftjob-none")
        self._ask("GET", "/models/none")
        self._ask("GET", "/chat/completions/none")
        self._ask("POST", "/fine_tuning/jobs", json={"model": BASE})
        self._ask("POST", "/chat/completions", json={"model": BASE, "messages": []})
        self._ask("POST", "/chat/completions", content=b"{", headers=JSON)
        self._ask("POST", "/uploads", content=json.dumps({}).encode())


JSON = {"content-type": "application/json"}
