"""How one trainer runs. Everything comes as arguments; nothing here reads the environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

__all__ = ["TrainerSettings"]

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """All that `create_app` needs to know. Sizes in bytes, times in seconds."""

    dir: Path
    """State: the database, files and models. One server at a time."""

    engine: str = "ngram"
    models: tuple[str, ...] = ()
    """Base models of the lora engine: a folder, a .gguf file or a name on the hub, each also as
    `ID=...`."""

    vllm: tuple[str, ...] = ()
    """URLs of vLLM servers (`http://host:8000/v1`) that answer for the lora engine's models; none
    answers in this process."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    quantize: Literal["auto", "4bit", "none"] = "auto"
    """Whether the lora engine loads weights in 4 bits; `auto` does where memory is too small."""

    lora_rank: int = 16
    max_example_tokens: int = 2048
    """Longer examples are cut by the lora engine."""

    training_threads: int | None = None
    """CPU threads of one lora training; None is half the cores."""

    ray_address: str | None = None
    """The head of the ray engine's cluster, HOST:PORT or `auto`; None starts a Ray on this machine
    for each job."""

    ray_storage: Path | None = None
    """A folder that all nodes of the cluster see under the same path, for what jobs need while
    they train; None is `dir`, which they must see then."""

    workers: int = 2
    """Workers of one ray training, one model each: on CUDA a device each."""

    min_workers: int | None = None
    """With how many workers a ray training may start and go on where there is no room for all;
    None waits for room."""

    worker_cpus: int = 1
    """Cores and threads of each worker."""

    worker_losses: int = 3
    """How often workers of a job may be lost before it fails."""

    concurrency: int = 1
    """Jobs that train at once; others wait in `queued`."""

    open_without_keys: bool = True
    """Whether any key is accepted as long as none was made (set for loopback only)."""

    organization: str = "local"
    """The organisation of requests while no key exists."""

    keep_completions: Literal["asked", "all", "none"] = "asked"
    """Which chat completions are kept: those asked for with `store: true`, all, or none."""

    completion_lifetime_s: float = 30 * 86400.0
    """After which kept ones are deleted."""

    answers_at_once: int = 32
    """Chat completions that are made at once; others wait for a place."""

    answers_waiting: int = 256
    """Chat completions that may wait for a place; beyond them 503 `engine_overloaded`."""

    connections: int = 1000
    """At once, as far as the process may have two open files for each."""

    connections_per_address: int | None = None
    """At once from one address; None is three quarters of all."""

    slowest_request_s: float = 60.0
    """How long a request's head may take, its body stand still, and an answer go unread."""

    local_only: bool = True
    """Whether the server listens on loopback only: then requests must name it by an address or as
    `localhost`, lest a web page reaches it by a name of its own."""

    allowed_hosts: tuple[str, ...] = ()
    """Names by which requests may ask for it beside those; without `local_only`, where there are
    any, the only ones."""

    requests_per_minute: int | None = None
    """For each key; None is no limit."""

    max_file_bytes: int = 512 * MIB
    max_upload_bytes: int = 8 * 1024 * MIB
    max_part_bytes: int = 64 * MIB
    min_examples: int = 10
    token_quota: int | None = None
    """Trained tokens for each organisation in a calendar month (UTC); a job beyond it fails with
    `exceeded_quota`. None is no quota."""

    blocklist: tuple[str, ...] = ()
    """Phrases that must not occur in training files, whatever their case (`unsafe_file`)."""

    checkpoints_kept: int = 3
    upload_lifetime_s: int = 3600
    file_lifetime_s: int | None = None
    """Training and result files older than this are deleted; None keeps them for ever."""

    collect_every_s: float = 600.0
    max_answer_tokens: int = 4096
