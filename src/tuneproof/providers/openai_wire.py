"""The fine-tuning wire of OpenAI, spoken by the official client.

Every call is made once: retries belong to the caller, who knows what may be repeated. Errors
are those of `tuneproof.errors`. Verified against openai 3.51.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tuneproof.errors import (
    ConfigError,
    DataError,
    NotDeployedError,
    NotFoundError,
    ProviderUnavailableError,
    TrainingNotAvailableError,
    TuneProofError,
)
from tuneproof.providers.dialects import Dialect
from tuneproof.providers.http import Breaker
from tuneproof.providers.openai_records import (
    chosen_logprob,
    completions_of,
    event_of,
    flagged_of,
    job_of,
    model_of,
    vectors_of,
)
from tuneproof.providers.wire_errors import translate
from tuneproof.settings import Url
from tuneproof.training import (
    Completion,
    Job,
    JobEvent,
    JobRequest,
    ModelInfo,
    Score,
    TrainingReadiness,
)

if TYPE_CHECKING:
    import openai
    from openai.types import FileObject
    from openai.types.chat import ChatCompletion

    from tuneproof.workflow import Clock

T = TypeVar("T")

ABSENT_FILE = "file-tuneproofpreflight"
"""The id of a file that no server has: what a preflight asks to train on."""

UNREADABLE = ("error", "failed")
"""States of a file that no job may use; `failed` is Azure's word."""

UNDEPLOYED = ("model_not_available", "DeploymentNotFound")
"""Codes by which a refusal (400) says that a model is not deployed: Together's, Azure's."""

NEWEST_EVENTS = 20
"""How many events of a job under way are read at once."""

READ = ("processed", "succeeded")
"""States of a file that a server has read; `succeeded` is Azure's word."""


class OpenAIWire:
    """A `Provider` over an `openai.AsyncOpenAI` that was made with `max_retries=0`."""

    def __init__(
        self,
        *,
        name: str,
        client: openai.AsyncOpenAI,
        dialect: Dialect,
        clock: Clock,
        breaker: Breaker | None = None,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self._client = client
        self._clock = clock
        self._breaker = breaker

    # Files

    async def upload(self, path: Path, *, name: str) -> str:
        """Upload a JSONL file streamed under `name` and return the provider's file id.

        Files above 512 MB go in parts through the uploads API. Raises `DataError` for a file
        that is absent, empty, or larger than the server takes.
        """
        size = _size(path)
        limit = self.dialect.uploads_above
        if limit is not None and size > limit:
            return await self._upload_parts(path, name=name, size=size)
        with path.open("rb") as file:
            made = await self._call(
                lambda: self._client.files.create(
                    file=(name, file, "application/jsonl"), purpose="fine-tune"
                )
            )
        return made.id

    async def _upload_parts(self, path: Path, *, name: str, size: int) -> str:
        upload = await self._call(
            lambda: self._client.uploads.create(
                bytes=size, filename=name, mime_type="text/jsonl", purpose="fine-tune"
            )
        )
        try:
            parts = [part async for part in self._parts(upload.id, path)]
            done = await self._call(
                lambda: self._client.uploads.complete(upload.id, part_ids=parts)
            )
        except BaseException:
            await self._call(lambda: self._client.uploads.cancel(upload.id))
            raise
        file = done.file
        if file is None:
            raise ProviderUnavailableError(
                f"Provider {self.name!r} completed upload {upload.id} without naming its file.",
                mend="The upload is made again.",
            )
        return file.id

    async def _parts(self, upload_id: str, path: Path) -> AsyncIterator[str]:
        with path.open("rb") as file:
            while data := file.read(self.dialect.part_bytes):
                part = await self._call(
                    lambda data=data: self._client.uploads.parts.create(upload_id, data=data)  # type: ignore[misc]
                )
                yield part.id

    async def file_ready(self, file_id: str) -> bool:
        """Whether a job may use the file; only servers that read it first are asked.

        Raises `DataError` for a file that the server could not read.
        """
        if not self.dialect.file_processing:
            return True
        file: FileObject = await self._call(lambda: self._client.files.retrieve(file_id))
        if str(file.status) in UNREADABLE:
            raise DataError(
                f"Provider {self.name!r} could not read file {file_id}: "
                f"{file.status_details or 'it gave no reason'}.",
                mend="Mend the training file, then call again.",
            )
        return str(file.status) in READ

    async def find_file(self, name: str) -> str | None:
        """The id of the newest usable file with this name, or None."""

        async def search() -> str | None:
            async for file in self._client.files.list(
                purpose="fine-tune", order="desc", limit=1000
            ):
                if file.filename == name and str(file.status) not in (*UNREADABLE, "deleted"):
                    return file.id
            return None

        return await self._call(search)

    # Jobs

    async def create_job(self, request: JobRequest) -> Job:
        """Start a job; never retried inside."""
        body = self._job_body(request)
        job = await self._call(
            lambda: self._client.fine_tuning.jobs.create(
                model=request.model,
                training_file=request.training_file,
                extra_body=body,
            )
        )
        return job_of(job)

    def _job_body(self, request: JobRequest) -> dict[str, Any]:
        chosen = {k: v for k, v in request.hyperparameters.items() if v != "auto"}
        self._check_learning_rate(chosen.get("learning_rate_multiplier"))
        body = {**self._method(request.method, chosen), **self.dialect.job_body}
        optional = {
            "validation_file": request.validation_file,
            "suffix": request.suffix if self.dialect.suffix else None,
            "seed": request.seed,
            "metadata": dict(request.metadata),
        }
        return body | {k: v for k, v in optional.items() if v not in (None, {})}

    @property
    def _methods(self) -> str:
        return ", ".join(self.dialect.methods)

    def _method(self, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a job's body that says how to train."""
        if name not in self.dialect.methods:
            raise ConfigError(
                f"Provider {self.name!r} ({self.dialect.name}) does not train by {name!r}.",
                mend=f"Set training.method to one of: {self._methods}."
                if self.dialect.methods
                else "Name another provider in training.provider: this one only answers.",
            )
        if self.dialect.old_hyperparameters:
            return {"hyperparameters": dict(chosen)} if chosen else {}
        method: dict[str, Any] = {"type": name}
        if chosen:
            method[name] = {"hyperparameters": dict(chosen)}
        return {"method": method}

    def _check_learning_rate(self, value: int | float | str | None) -> None:
        if self.dialect.absolute_learning_rate and isinstance(value, int | float) and value >= 0.1:
            raise ConfigError(
                f"learning_rate_multiplier {value} is not sent to provider {self.name!r}: "
                f"{self.dialect.name} reads it as the learning rate itself, which stays below 0.1.",
                mend='Set it to "auto", or to a learning rate such as 0.00001.',
            )

    async def find_job(self, key: str, value: str) -> Job | None:
        """The newest job whose metadata has `key` = `value`, or None.

        The server is asked to filter; a server that ignores the filter is searched through.
        """

        async def search() -> Job | None:
            pages = self._client.fine_tuning.jobs.list(limit=100, metadata={key: value})
            async for job in pages:
                if (job.metadata or {}).get(key) == value:
                    return job_of(job)
            return None

        return await self._call(search)

    async def job(self, job_id: str) -> Job:
        """The job as it stands now."""
        return job_of(await self._call(lambda: self._client.fine_tuning.jobs.retrieve(job_id)))

    async def cancel_job(self, job_id: str) -> Job:
        """Ask for the job's end; a job that ended already is returned as it is."""
        try:
            return job_of(await self._call(lambda: self._client.fine_tuning.jobs.cancel(job_id)))
        except DataError:
            job = await self.job(job_id)
            if job.status.final:
                return job
            raise

    async def events(self, job_id: str) -> Sequence[JobEvent]:
        """All events of the job, oldest first."""

        async def read() -> list[JobEvent]:
            pages = self._client.fine_tuning.jobs.list_events(job_id, limit=100)
            return [event_of(event) async for event in pages]

        return (await self._call(read))[::-1]  # the wire lists the newest first

    async def newest_events(self, job_id: str) -> Sequence[JobEvent]:
        """The newest events of the job, oldest first."""

        async def read() -> list[JobEvent]:
            page = await self._client.fine_tuning.jobs.list_events(job_id, limit=NEWEST_EVENTS)
            return [event_of(event) for event in page.data]

        return (await self._call(read))[::-1]

    # Models

    async def models(self) -> Sequence[ModelInfo]:
        """The models that this account can call."""

        async def read() -> list[ModelInfo]:
            return [model_of(model) async for model in self._client.models.list()]

        return await self._call(read)

    async def model(self, model: str) -> ModelInfo | None:
        """What the server says of one model; None for one that it does not know."""
        try:
            return model_of(await self._call(lambda: self._client.models.retrieve(model)))
        except NotFoundError:
            return None

    async def readiness(self, model: str, method: str) -> TrainingReadiness:
        """Whether the account may train this model: a job over a file that cannot be is asked for.

        A closed account is refused with 403 before the file is looked at, a model that cannot
        be tuned is named in the refusal, and the refusal of the file says that all is well. No
        job can come of it; should a server make one all the same, it is cancelled at once.
        Only servers whose row of `dialects` says so are asked this way.
        """
        listed = {m.id: m for m in await self.models()}  # also tells whether the key is good
        known = listed.get(model)
        shutdown = known.shutdown_at if known else None
        offered = tuple(m for m in listed if not m.startswith("ft:"))
        if method not in self.dialect.methods:
            detail = f"it trains by {self._methods} only" if self._methods else "it trains nothing"
            return TrainingReadiness(
                model=model, tunable=False, shutdown_at=shutdown, detail=detail
            )
        if not self.dialect.probes_training:
            return TrainingReadiness(model=model, shutdown_at=shutdown, offered=offered)
        account, tunable, detail = await self._probe(model, method)
        return TrainingReadiness(
            model=model,
            account=account,
            tunable=tunable,
            shutdown_at=shutdown,
            detail=detail,
            offered=offered,
        )

    async def _probe(self, model: str, method: str) -> tuple[bool | None, bool | None, str]:
        request = JobRequest(model=model, training_file=ABSENT_FILE, method=method)
        try:
            job = await self.create_job(request)
        except TrainingNotAvailableError as e:
            return False, None, e.message.rstrip(".")
        except NotFoundError as e:
            return True, (None if _about_file(e) else False), e.message.rstrip(".")
        except DataError as e:
            if _about_file(e):
                return True, True, ""
            named = e.details.get("param") in ("model", "method", "method.type")
            return True, (False if named else None), e.message.rstrip(".")
        await self.cancel_job(job.id)
        return True, True, ""

    async def ensure_deployed(self, model: str) -> None:
        """Return where the model answers; only servers that deploy a fine-tune first are asked.

        The question is one for a single token. Raises `NotDeployedError`, which says how.
        """
        if not self.dialect.deploys:
            return
        try:
            await self.complete(model, [{"role": "user", "content": "Hello"}], max_tokens=1)
        except (NotFoundError, DataError) as e:
            if isinstance(e, DataError) and e.details.get("code") not in UNDEPLOYED:
                raise
            raise NotDeployedError(
                f"{model} does not answer at {self.name} before it is deployed.",
                mend=f"{self.dialect.deploys} The run waits for it, and goes on by itself.",
            ) from e

    async def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Sequence[Completion]:
        """Ask a model for `n` replies; `parameters` go with them as they are.

        The wire reports tokens for the whole answer: the prompt's are put on the first reply,
        the replies' are shared out by the length of their texts, so sums are what is billed.
        """
        body: dict[str, Any] = {"n": n, "temperature": temperature, "seed": seed}
        body[self.dialect.max_tokens_field] = max_tokens
        body = {**(parameters or {}), **{k: v for k, v in body.items() if v is not None}}
        started_at = self._clock.now()
        answer = await self._chat(model, messages, body, timeout_s=timeout_s)
        latency_ms = (self._clock.now() - started_at).total_seconds() * 1000
        return completions_of(answer, latency_ms)

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """How likely the model finds the last (assistant) message.

        Asks for `prompt_logprobs` of the whole conversation. A server that gives them for the
        last message only (None for all other tokens) has answered; from one that gives them for
        all tokens, those behind the conversation without its last message are taken. None
        where the server does not know the extension, or ignores it.
        """
        if not self.dialect.prompt_logprobs:
            return None
        whole = {"max_tokens": 1, "prompt_logprobs": 0, "add_generation_prompt": False}
        try:
            answer = await self._chat(model, messages, whole, timeout_s=timeout_s)
            entries = getattr(answer, "prompt_logprobs", None)
            if not isinstance(entries, list):
                return None
            if None not in entries[1:]:
                short = {"max_tokens": 1}
                start = await self._chat(model, messages[:-1], short, timeout_s=timeout_s)
                entries = entries[start.usage.prompt_tokens if start.usage else len(entries) :]
        except DataError:
            return None
        logprobs = [chosen_logprob(entry) for entry in entries if entry]
        return Score(tokens=len(logprobs), logprob=sum(logprobs)) if logprobs else None

    async def moderate(self, model: str, texts: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """The categories in which a moderation model flags each text, by one call.

        Raises `DataError` for an answer that does not say it of each text.
        """

        async def ask() -> Sequence[tuple[str, ...]]:
            answer = await self._client.moderations.create(model=model, input=list(texts))
            return flagged_of(answer, len(texts))

        return await self._call(ask)

    async def embed(
        self, model: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> Sequence[Sequence[float]]:
        """The model's vectors of texts, by one call.

        Raises `DataError` for a refusal, and an answer that has not one vector of each text.
        """

        from openai import NOT_GIVEN

        async def ask() -> Sequence[Sequence[float]]:
            answer = await self._client.embeddings.create(
                model=model,
                input=list(texts),
                encoding_format="float",
                timeout=NOT_GIVEN if timeout_s is None else timeout_s,
            )
            return vectors_of(answer, len(texts))

        return await self._call(ask)

    async def _chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        body: Mapping[str, Any],
        *,
        timeout_s: float | None = None,
    ) -> ChatCompletion:
        from openai import NOT_GIVEN

        return await self._call(
            lambda: self._client.chat.completions.create(
                model=model,
                messages=cast(Any, [dict(message) for message in messages]),
                extra_body=dict(body),
                timeout=NOT_GIVEN if timeout_s is None else timeout_s,
            )
        )

    # Health

    async def ping(self) -> None:
        """Raise unless the provider answers an authenticated call."""
        await self._call(lambda: self._client.models.list())

    async def close(self) -> None:
        """Give connections back."""
        await self._client.close()

    @property
    def _address(self) -> Url:
        return Url(str(self._client.base_url))

    async def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Make one call, through the breaker where there is one, with our errors."""
        from openai import OpenAIError  # who made the client has loaded it

        async def translated() -> T:
            try:
                return await function()
            except OpenAIError as error:
                address = self._address.masked
                raise translate(error, provider=self.name, address=address) from error
            except (AttributeError, TypeError, KeyError, ValueError) as error:
                # The SDK trips over an answer that is not of this API: a web page, a proxy.
                raise DataError(
                    f"{self._address} does not speak the OpenAI API: its answer cannot "
                    f"be read ({error}).",
                    mend=f"Check providers.{self.name}.base_url; most end in /v1.",
                ) from error

        return await (translated() if self._breaker is None else self._breaker.call(translated))


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(
            f"Training file {path} does not exist.", mend="Collect the training data again."
        ) from None
    if size == 0:
        raise DataError(f"Training file {path} is empty.", mend="Collect more examples.")
    return size


def _about_file(error: TuneProofError) -> bool:
    """Whether a refusal speaks of the training file, and so of nothing before it."""
    place = (error.details.get("param"), error.details.get("code"))
    return "training_file" in place or ABSENT_FILE in error.message
