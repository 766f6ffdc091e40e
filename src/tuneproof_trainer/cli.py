"""The command `tuneproof-trainer`: serve, and manage keys."""

from __future__ import annotations

import ipaddress
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter, validators
from rich.console import Console

from tuneproof_trainer.errors import ServerError

if TYPE_CHECKING:
    from tuneproof_trainer.server import TrainerApp
    from tuneproof_trainer.service import TrainerService

__all__ = ["main"]

app = App(
    name="tuneproof-trainer",
    help="The OpenAI fine-tuning API on your own machine.",
    version_flags=[],
)
keys = App(name="keys", help="API keys. Once one was made, every request needs one.")
app.command(keys)

_DRAIN_S = 20
"""How long a stopping server lets answers and uploads that have begun come to their end."""

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Dir = Annotated[Path, Parameter(help="The folder with all state.")]


@app.command
def serve(
    *,
    dir: Dir = Path(".tuneproof-trainer"),
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8700,
    engine: Literal["ngram", "lora", "ray"] = "ngram",
    model: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    vllm: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quantize: Literal["auto", "4bit", "none"] = "auto",
    rank: Count = 16,
    max_example_tokens: Count = 2048,
    threads: Count | None = None,
    ray_address: str | None = None,
    ray_storage: Path | None = None,
    workers: Count = 2,
    min_workers: Count | None = None,
    worker_cpus: Count = 1,
    worker_losses: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 3,
    concurrency: Count = 1,
    organization: str = "local",
    requests_per_minute: Count | None = None,
    connections: Count = 1000,
    connections_per_address: Count | None = None,
    allowed_host: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    keep_completions: Literal["asked", "all", "none"] = "asked",
    completion_lifetime_days: Count = 30,
    answers_at_once: Count = 32,
    answers_waiting: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 256,
    token_quota: Count | None = None,
    blocklist: Annotated[Path, Parameter(validator=validators.Path(exists=True))] | None = None,
    file_lifetime_days: Count | None = None,
    checkpoints_kept: Count = 3,
) -> None:
    """Serve the API until interrupted.

    Parameters
    ----------
    host:
        Address to listen on. Beyond loopback, requests need a key (`keys create`).
    port:
        Port to listen on.
    engine:
        What trains and answers: ngram to try the loop, lora for models to be used, ray for the
        same over several workers.
    model:
        A base model of the lora or ray engine, repeatable: a folder, a .gguf file or a name on the
        hub; ID=PATH gives it another name.
    vllm:
        URL of a vLLM server that answers for the lora engine, e.g. http://127.0.0.1:8000/v1,
        repeatable; each must see this server's folder.
    device:
        What the lora engine runs on.
    quantize:
        Whether the lora engine loads weights in 4 bits; auto does where memory is too small.
    rank:
        Rank of the lora engine's adapters: the higher, the more they can hold, and cost.
    max_example_tokens:
        Longer examples are cut by the lora engine; of less memory, take fewer.
    threads:
        Threads of the processor for one training of the lora engine; half the cores by default.
    ray_address:
        The head of the ray engine's cluster, HOST:PORT, or auto on one of its nodes; by default
        each job starts a Ray on this machine.
    ray_storage:
        A folder that all nodes of the cluster see under the same path; --dir by default.
    workers:
        Workers of one training of the ray engine.
    min_workers:
        With how many workers such a training may go on where there is no room for all; by default
        it waits.
    worker_cpus:
        Cores of each worker.
    worker_losses:
        How often workers of a job may be lost before it fails.
    concurrency:
        Jobs that train at once.
    organization:
        Name of the organisation while there is no key.
    requests_per_minute:
        Limit for each key; unlimited by default.
    connections:
        Connections at once, as far as the process may have two open files for each.
    connections_per_address:
        Connections at once from one address; three quarters of all by default.
    allowed_host:
        Name by which requests may ask for this server, repeatable. On loopback that is `localhost`
        or an address by default, lest a web page reaches it by a name of its own.
    keep_completions:
        Which chat completions are kept: those asked for with `store: true`, all, or none.
    completion_lifetime_days:
        Delete kept chat completions that are older.
    answers_at_once:
        Chat completions that are made at once; others wait.
    answers_waiting:
        Chat completions that may wait; beyond them 503 with Retry-After.
    token_quota:
        Trained tokens for each organisation and month; unlimited by default.
    blocklist:
        File of phrases, one a line, that must not occur in training files.
    file_lifetime_days:
        Delete files that are older; kept for ever by default.
    checkpoints_kept:
        Newest checkpoints kept of each job.
    """
    from tuneproof_trainer.listening import listening
    from tuneproof_trainer.server import create_app
    from tuneproof_trainer.settings import TrainerSettings

    phrases = blocklist.read_text().splitlines() if blocklist else []
    settings = TrainerSettings(
        dir=dir,
        engine=engine,
        models=model,
        vllm=vllm,
        device=device,
        quantize=quantize,
        lora_rank=rank,
        max_example_tokens=max_example_tokens,
        training_threads=threads,
        ray_address=ray_address,
        ray_storage=ray_storage,
        workers=workers,
        min_workers=min_workers,
        worker_cpus=worker_cpus,
        worker_losses=worker_losses,
        concurrency=concurrency,
        organization=organization,
        open_without_keys=_is_loopback(host),
        local_only=_is_loopback(host),
        allowed_hosts=allowed_host,
        connections=connections,
        connections_per_address=connections_per_address,
        requests_per_minute=requests_per_minute,
        keep_completions=keep_completions,
        completion_lifetime_s=completion_lifetime_days * 86400.0,
        answers_at_once=answers_at_once,
        answers_waiting=answers_waiting,
        token_quota=token_quota,
        blocklist=tuple(phrase.strip() for phrase in phrases if phrase.strip()),
        file_lifetime_s=file_lifetime_days * 86400 if file_lifetime_days else None,
        checkpoints_kept=checkpoints_kept,
    )
    with listening(host, port) as listener:
        _serve(create_app(settings), listener)


def _serve(trainer: TrainerApp, listener: socket.socket) -> None:
    """Answer until a signal ends it; says on stderr where, and with what."""
    import logging

    import uvicorn

    from tuneproof_trainer.framing import Rarely
    from tuneproof_trainer.listening import await_all, http_config

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                await_all(sockets)
                _introduce(trainer.service, listener)

    logging.getLogger("asyncio").addFilter(Rarely())
    settings = trainer.service.settings
    config = http_config(trainer, settings, log_level="warning", timeout_graceful_shutdown=_DRAIN_S)
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)


def _introduce(service: TrainerService, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    bases = [base.id for engine in service.engines for base in engine.base_models()]
    lines = [
        f"Listening on http://{host}:{port} with {', '.join(bases)}. Ctrl+C ends it.",
        f"Clients take http://{host}:{port}/v1 as their base URL.",
    ]
    if service.keys.any():
        lines.append("Requests need a key; `tuneproof-trainer keys list` shows them.")
    elif service.settings.open_without_keys:
        lines.append("No key was made, so any key is taken, or none.")
    else:
        lines += [
            "No API key exists, so every request is refused. Make one:",
            f"  tuneproof-trainer keys create --dir {service.settings.dir} --name NAME",
        ]
    for line in lines:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


@app.command
def export(
    fine_tune: str,
    *,
    to: Path,
    model: tuple[str, ...],
    dir: Dir = Path(".tuneproof-trainer"),
    org: str = "local",
) -> None:
    """Write a fine-tune of the lora engine as one whole model, with its adapter merged in.

    Parameters
    ----------
    fine_tune:
        The model's name, ft:...
    to:
        The folder to write; it must not exist yet or be empty.
    model:
        The base models, as in `serve`.
    org:
        The organisation that the fine-tune belongs to.
    """
    from tuneproof_trainer.engines.lora.export import export_merged
    from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases

    if to.exists() and any(to.iterdir()):
        raise ServerError(f"{to} is not empty; name another folder.")
    with _database(dir) as database:
        sql = "SELECT path FROM models WHERE id = ? AND org = ? AND deleted_at IS NULL"
        row = database.row(sql, fine_tune, org)
    if row is None:
        raise ServerError(f"{dir} has no fine-tune {fine_tune!r} of the organisation {org!r}.")
    options = LoraOptions(bases=named_bases(model), device="cpu", quantize="none")
    export_merged(dir / "models" / row["path"], options, to)
    Console().print(f"{fine_tune} is now a whole model in {to}", highlight=False, soft_wrap=True)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _database(dir: Path) -> Iterator[Any]:
    from tuneproof_trainer.database import TrainerDatabase

    dir.mkdir(parents=True, exist_ok=True)
    database = TrainerDatabase(dir / "trainer.sqlite")
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _key_store(dir: Path) -> Iterator[Any]:
    from tuneproof_trainer.access import KeyStore

    with _database(dir) as database:
        yield KeyStore(database, time.time)


@keys.command
def create(
    *, name: str, dir: Dir = Path(".tuneproof-trainer"), org: str = "local", training: bool = True
) -> None:
    """Make a key and print it; it is not shown again.

    Parameters
    ----------
    name:
        What the key is for.
    org:
        The organisation whose files, jobs and models it sees.
    training:
        `--no-training` makes a key that can chat but not train.
    """
    with _key_store(dir) as store:
        Console().print(
            store.create(name, org, may_train=training), highlight=False, soft_wrap=True
        )


@keys.command(name="list")
def list_keys(*, dir: Dir = Path(".tuneproof-trainer")) -> None:
    """Show all keys: id, name, organisation, beginning and end."""
    console = Console()
    with _key_store(dir) as store:
        for row in store.list():
            state = "revoked" if row["revoked_at"] else "active"
            training = "" if row["may_train"] else " no-training"
            line = f"{row['id']}  {row['name']}  {row['org']}  {row['hint']}  {state}{training}"
            console.print(line, highlight=False, soft_wrap=True)


@keys.command
def revoke(key_id: str, *, dir: Dir = Path(".tuneproof-trainer")) -> None:
    """Refuse a key from now on (a running server notices within two seconds)."""
    with _key_store(dir) as store:
        if not store.revoke(key_id):
            raise ServerError(f"No active key has the id {key_id!r}; `keys list` shows them.")


def main() -> None:
    """Run the command line; errors that a person can mend are one line on stderr."""
    try:
        app()
    except ServerError as error:
        message = f"tuneproof-trainer: {error}"
        Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
