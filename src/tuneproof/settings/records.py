"""What the tables say that the user names: tasks, providers, sources, targets, scorers.

Each record validates itself by what its fields say (`fields.option`). Keys and tokens are
`Secret`, addresses `Url`: neither shows what is secret in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tuneproof.settings import checks, fields
from tuneproof.settings.checks import HTTP
from tuneproof.settings.fields import YEAR_HOURS, YEAR_SECONDS, Option, metadata, option
from tuneproof.settings.relay import UNLIMITED
from tuneproof.settings.secrets import Options, Secret, Url

_NAME = Option(doc="the table's name")


def shown(value: Any) -> Any:
    """A setting's value as JSON types, with secrets and passwords masked."""
    if isinstance(value, Secret | Options):
        return shown(value.masked)
    if isinstance(value, Mapping):
        return {str(k): shown(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [shown(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: shown(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One thing the application asks a model for.

    `prompt` is a template over the post's columns; a post whose columns for it are empty gets
    `empty_prompt`. `completion` is the column with the answer. `model` is the model in use
    before the first rollout (None: the pipeline's base model), which `model_provider` serves
    (None: the pipeline's provider). Where the pipeline's tasks train apart, `provider` and
    `base_model` are this task's own (None: the pipeline's). The gateway copies requests of a
    `shadow_share` of the units for `shadow_model`. It asks for `best_of` answers to a request, of
    which the outcome model picks one.
    """

    name: str = field(metadata=metadata(_NAME))
    prompt: str = field(metadata=metadata(Option(doc="template over the post's columns")))
    completion: str = field(metadata=metadata(Option(doc="the column with the answer")))
    empty_prompt: str = option(
        "Create engaging content", Option(doc="where all of the prompt's columns are empty")
    )
    system: str | None = option(None, Option(doc="system message"))
    prompt_owner: str = option(
        "application",
        Option(
            choices=("application", "variant"),
            doc="who says what the task's models are asked; `variant`: the model's "
            "[prompt does](../how-to/prompts.md), and the application sends its variables",
        ),
    )
    model: str | None = option(
        None,
        Option(
            env={"hook": "HOOK_MODEL", "body": "BODY_MODEL"},
            doc="the model in use before the first rollout",
        ),
    )
    model_provider: str | None = option(
        None, Option(doc="who serves that model; none: the pipeline's provider")
    )
    served_by: str = option(
        "gateway",
        Option(
            choices=("gateway", "application"),
            doc="who asks the task's models; `application`: it asks them itself, told by the "
            "client or a target, and our checks cannot",
        ),
    )
    aliases: tuple[str, ...] = option(
        (),
        Option(
            empty=True,
            doc="model names that mean this task at the gateway, beside `tuneproof/NAME`: an "
            "application keeps the name that it has",
        ),
    )
    provider: str | None = option(
        None, Option(doc="who trains this task, where it is not the pipeline's")
    )
    base_model: str | None = option(
        None, Option(doc="what is tuned for this task, where it is not the pipeline's")
    )
    best_of: int = option(
        1,
        Option(
            at_least=1,
            at_most=16,
            doc="how many answers the gateway asks for, of which the outcome model "
            "[picks one](../how-to/what-it-learns.md#better-answers-without-training); 1: none is "
            "picked",
        ),
    )
    shadow_model: str | None = option(
        None,
        Option(
            doc="who gets copies of the task's requests at the gateway, "
            "[unseen by users](../how-to/route-traffic.md#shadow-traffic)"
        ),
    )
    shadow_provider: str | None = option(
        None, Option(doc="who serves that model; none: whoever serves `model`")
    )
    shadow_share: float = option(
        0.1, Option(at_least=0, at_most=1, doc="of the units: the requests of these are copied")
    )
    shadow_concurrency: int = option(
        4,
        Option(
            at_least=1,
            at_most=1000,
            doc="copies under way at once in each process; while they are, no other is made",
        ),
    )
    shadow_budget_usd_per_day: float | str | None = option(
        None,
        Option(
            words=(UNLIMITED,),
            at_least=0,
            at_most=1e9,
            default_doc="must be said with `shadow_model`",
            doc="what the copies may cost in a day (UTC), all processes together; or `unlimited`",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        self._check_shadow()
        if self.best_of > 1 and not self.asked_here:
            rule = 'needs served_by = "gateway": nobody else asks for answers'
            raise checks.refuse("best_of", self.best_of, rule, mend="Leave it out.")
        try:
            self.columns  # noqa: B018 - parses the template
        except ValueError as error:
            mend = 'Write columns in braces, such as "{original_input}"; double a brace to keep it.'
            raise checks.refuse("prompt", self.prompt, "must be a template", mend=mend) from error
        if self.owned_by_variants:
            self._check_first_prompt()

    def _check_first_prompt(self) -> None:
        """In a prompt a name in braces is a variable: as text it would be filled."""
        for column in self.columns:
            if not (column.isascii() and column.isidentifier()):
                rule = f"has {{{column}}}, and a variable's name is of letters, digits and _"
                mend = "Double a brace that is to stay, as in {{...}}; or give the column a name."
                raise checks.refuse("prompt", self.prompt, rule, mend=mend)
        for name, text in (("system", self.system or ""), ("empty_prompt", self.empty_prompt)):
            if any(f"{{{column}}}" in text for column in self.columns):
                rule = "may not name a variable in braces where variants own the prompt"
                raise checks.refuse(name, text, rule, mend="Write it without the braces.")
        if any(f"{{{{{name}}}}}" in self.prompt for name in self.columns):
            rule = "may not have a variable in doubled braces where variants own the prompt"
            raise checks.refuse("prompt", self.prompt, rule, mend="Write it without the braces.")

    def _check_shadow(self) -> None:
        if self.shadow_model is None:
            return
        if self.shadow_budget_usd_per_day is None:
            rule = "must be said with shadow_model"
            mend = f'Set it to USD a day, or to "{UNLIMITED}".'
            raise checks.refuse("shadow_budget_usd_per_day", None, rule, mend=mend)
        if not self.asked_here:
            rule = 'needs served_by = "gateway": nobody else sees the requests'
            raise checks.refuse("shadow_model", self.shadow_model, rule, mend="Leave it out.")

    @property
    def asked_here(self) -> bool:
        """Whether the gateway, and so our checks, may ask this task's models."""
        return self.served_by == "gateway"

    @property
    def owned_by_variants(self) -> bool:
        """Whether a variant's prompt says what the task's models are asked."""
        return self.prompt_owner == "variant"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the prompt's template names, in order, each once."""
        from string import Formatter

        found = (name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None)
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


HOOK = TaskConfig(name="hook", prompt="{original_input}", completion="hook")
BODY = TaskConfig(name="body", prompt="{hook}\n\nWrite a detailed post:", completion="body")


def _prices(field: str, value: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {model: _price(f"{field}.{model}", pair) for model, pair in value.items()}


def _price(field: str, pair: Any) -> tuple[float, float]:
    rule = "must be two numbers, USD per million tokens of prompt and of completion"
    if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
        raise checks.refuse(field, pair, rule)
    for part in pair:
        checks.number(field, part, at_least=0)
    return float(pair[0]), float(pair[1])


def _training_prices(field: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    for model, price in value.items():
        checks.number(f"{field}.{model}", price, at_least=0)
    return value


@dataclass(frozen=True, kw_only=True)
class ProviderConfig:
    """Who trains and answers. `kind` is a dialect of OpenAI's wire, "openai" (told by its host),
    "azure", "nebius", "anthropic", "compatible", or "trainer": our own, started in this process
    where no `base_url` is set; or a wire of its own, "together" or "fireworks".

    `base_model` is what pipelines train on here that name none of their own, so that naming
    another provider is enough to switch. Give the key by `api_key_env`, the name of an
    environment variable; only the settings read it. `organization` is the account at Fireworks.
    `webhook_secret` (by `webhook_secret_env`) is what the provider signs its webhooks with.
    `prices` maps a model's prefix to USD per million tokens (prompt, completion),
    `training_prices` to USD per million trained tokens; both go before the dated table.
    """

    name: str = option("default", _NAME)
    kind: str = option(
        "openai",
        Option(
            doc="whose wire: `openai` (told by host), `azure`, `nebius`, `compatible`, `together`, "
            "`fireworks`, `anthropic`; `trainer`: ours"
        ),
    )
    base_url: Url | None = option(
        None,
        Option(
            schemes=HTTP,
            env="OPENAI_BASE_URL",
            argument="base_url",
            doc="address, with `/v1`",
        ),
    )
    base_model: str | None = option(
        None, Option(doc="what pipelines train on here that name no `base_model` of their own")
    )
    api_key_env: str = option(
        "",
        Option(
            empty=True,
            default_doc="by kind",
            doc="the environment variable that holds the key (`OPENAI_API_KEY`)",
        ),
    )
    api_key: Secret | None = option(
        None,
        Option(
            argument="api_key",
            doc="the key itself; better by variable",
        ),
    )
    organization: str | None = option(
        None, Option(env="OPENAI_ORG_ID", doc="organisation or account")
    )
    webhook_secret_env: str = option(
        "OPENAI_WEBHOOK_SECRET",
        Option(doc="the variable that holds the secret of the provider's webhooks"),
    )
    webhook_secret: Secret | None = option(
        None,
        Option(doc="that secret; better by variable"),
    )
    timeout_seconds: float = option(30, Option(above=0, at_most=YEAR_SECONDS, doc="of one call"))
    prices: Mapping[str, tuple[float, float]] = option(
        {},
        Option(
            rule=_prices,
            doc='`"MODEL PREFIX" = [prompt, completion]`, USD per million tokens',
        ),
    )
    training_prices: Mapping[str, float] = option(
        {},
        Option(
            rule=_training_prices,
            doc='`"MODEL PREFIX" = price`, USD per million trained tokens',
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if not self.api_key_env:
            object.__setattr__(self, "api_key_env", key_variable(self.kind))

    @property
    def embedded(self) -> bool:
        """Whether this process starts the trainer itself."""
        return self.kind == "trainer" and self.base_url is None


_KEY_VARIABLES = {
    "together": "TOGETHER_API_KEY",
    "fireworks": "FIREWORKS_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
}


def key_variable(kind: str) -> str:
    """The environment variable that holds the key of a provider that names none."""
    return _KEY_VARIABLES.get(kind, "OPENAI_API_KEY")


POST_COLUMNS: Mapping[str, str] = {
    "id": "id",
    "persona_id": "persona_id",
    "original_input": "original_input",
    "hook": "hook",
    "body": "body",
    "engagement_rate": "engagement_rate",
    "ts": "ts",
    "tokens_used": "tokens_used",
}
"""Our word for a column of the posts -> its usual name in the user's table."""


def _columns(field: str, value: Mapping[str, str]) -> Mapping[str, str]:
    for word, column in value.items():
        checks.text(f"{field}.{word}", column)
    return value


def _time_format(field: str, value: Any) -> Any:
    """Refuse a format that cannot tell one day from another, or that `strptime` does not know."""
    if value is None:
        return value
    checks.text(field, value)
    mend = 'Write it in the words of strptime, such as "%d/%m/%Y %H:%M".'
    try:
        written = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC).strftime(value)
        back = datetime.strptime(written, value)  # noqa: DTZ007
    except ValueError as error:
        raise checks.refuse(field, value, "must be a format of times", mend=mend) from error
    if (back.year, back.month, back.day) != (2001, 2, 3):
        raise checks.refuse(field, value, "must name year, month and day", mend=mend)
    return value


def _query(field: str, value: Any) -> Any:
    checks.text(field, value)
    for parameter in (":since", ":until"):
        if parameter not in value:
            raise checks.refuse(field, value, f"must use the parameter {parameter}")
    return value


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where posts come from: a database or a file. `url` None is our own database.

    `columns` says which column of the table is meant by our word for it; words left out keep
    their own name. `where` is SQL put beside the conditions, from this file only. Times without a
    zone are of `time_zone`; `time_format` says how times are written that are not ISO 8601.
    """

    name: str = option("posts", _NAME)
    url: Url | None = option(
        None, Option(argument="posts", doc="database address or file; none: our own database")
    )
    table: str = option("posts", Option(doc="the table"))
    columns: Mapping[str, str] = option({}, Option(rule=_columns, doc="our word = your column"))
    where: str | None = option(None, Option(doc="SQL put beside the conditions"))
    time_zone: str = option(
        "UTC", Option(rule=checks.time_zone, doc="the zone of times that name none")
    )
    time_format: str | None = option(
        None,
        Option(
            rule=_time_format,
            doc='how times are written that are no ISO 8601, as `strptime` has it: "%d/%m/%Y"',
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)


@dataclass(frozen=True, kw_only=True)
class OutcomeSourceConfig:
    """Outcomes that lie in the user's own table. `url` None is our own database.

    `query` gets `:since` and `:until` and returns `unit`, `value`, `at` (when the row was last
    changed) and maybe `quality` and `item`. `times` says how the two are bound: "native"
    (timestamps), "text" (UTC, as "2025-01-20 02:00:00.000000"), "seconds" or "milliseconds" since
    1970; "auto" is text for SQLite, else native. Rows are read again for `overlap_hours`.
    """

    name: str = field(metadata=metadata(_NAME))
    query: str = field(
        metadata=metadata(
            Option(
                rule=_query,
                doc="SQL with `:since` and `:until` that returns `unit`, `value`, `at` (when "
                "changed), maybe `quality` and `item`",
            )
        )
    )
    url: Url | None = option(None, Option(doc="its database; none: our own"))
    times: str = option(
        "auto",
        Option(
            choices=("auto", "native", "text", "seconds", "milliseconds"),
            doc="how the two are bound: `native`, `text`, `seconds`, `milliseconds`",
        ),
    )
    overlap_hours: float = option(
        24, Option(at_least=0, at_most=YEAR_HOURS, doc="rows are read again for so long")
    )
    poll_seconds: float = option(
        300, Option(above=0, at_most=YEAR_SECONDS, doc="how often it is read")
    )

    def __post_init__(self) -> None:
        fields.check(self)


def _options(field: str, value: Mapping[str, Any]) -> Options:
    return value if isinstance(value, Options) else Options(value)


CLUSTER_KINDS = ("configmap", "istio")
"""Kinds of target in a cluster: `[kubernetes]` says how it is reached."""

TARGET_KINDS = (*CLUSTER_KINDS, "webhook", "envfile")
"""What `kind` of a target may say, if it is one of ours."""


def _target_kind(field: str, value: Any) -> Any:
    if not checks.dotted(value):
        checks.choice(field, value, TARGET_KINDS)
    return value


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """A place besides our router that must learn of a new share or model.

    `kind` is one of ours, or the dotted name of what makes one of yours from this config:
    "mypackage.targets:open_target".
    """

    name: str = field(metadata=metadata(_NAME))
    kind: str = field(
        metadata=metadata(
            Option(
                rule=_target_kind,
                doc="`envfile`, `configmap`, `istio`, `webhook`, with "
                "[options](../how-to/route-traffic.md) beside it; or the dotted name of what makes "
                "[one of yours](../how-to/extend.md)",
            )
        )
    )
    options: Mapping[str, Any] = option(
        {},
        Option(rule=_options, takes_rest_of=lambda table: True, doc="all further keys"),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.kind == "webhook":
            for key in ("url", "observe_url"):
                if isinstance(self.options.get(key), str):
                    checks.no_metadata(f"targets.{self.name}.{key}", self.options[key])
            object.__setattr__(self, "options", Options(self.options, hides_paths=True))


JUDGE_FIELDS = ("answer", "conversation", "rubric", "lowest", "highest", "mark")
"""What a judge's prompt may name in braces; the first is needed."""


def _scorer_kind(field: str, value: Any) -> Any:
    if value != "judge" and not checks.dotted(value):
        rule = 'must be "judge", or the dotted name of a scorer'
        mend = 'Write "package.module:name" of something that is installed.'
        raise checks.refuse(field, value, rule, mend=mend)
    return value


def _judge_prompt(field: str, value: Any) -> Any:
    from string import Formatter

    checks.text(field, value)
    mend = f"Write {{answer}}; known are {', '.join(JUDGE_FIELDS)}; double a brace to keep it."
    try:
        named = [name for _, name, _, _ in Formatter().parse(value) if name is not None]
    except ValueError as error:
        raise checks.refuse(field, value, "must be a template", mend=mend) from error
    unknown = [name for name in named if name not in JUDGE_FIELDS]
    if unknown or "answer" not in named:
        raise checks.refuse(field, value, "must name {answer}, and nothing unknown", mend=mend)
    return value


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Who scores texts, for the gate and while a test runs.

    `kind` "judge" asks `model` at `provider` for a score from `lowest` to `highest` by `rubric`,
    or by a whole `prompt` of your own. Any other `kind` is the dotted name of a scorer of yours,
    "mypackage.scoring:readable"; with `options` (all further keys), of what makes one from them.
    """

    name: str = field(metadata=metadata(_NAME))
    kind: str = option(
        "judge",
        Option(
            rule=_scorer_kind,
            doc="a model is asked; or the dotted name of a [scorer of yours](../how-to/extend.md), "
            "with options beside it",
        ),
    )
    provider: str = option("default", Option(doc="the judge's: a table of `[providers]`"))
    model: str | None = option(None, Option(doc="the judge's; needed for one"))
    rubric: str | None = option(
        None,
        Option(
            doc="what the judge is to look at; none: whether the answer does what was asked, "
            "correct and clear"
        ),
    )
    prompt: str | None = option(
        None,
        Option(
            rule=_judge_prompt,
            doc="the whole question instead: `{answer}`, and maybe `{conversation}`, `{rubric}`, "
            "`{lowest}`, `{highest}`, `{mark}`",
        ),
    )
    lowest: float = option(
        1, Option(at_least=-1e9, at_most=1e9, doc="of the judge's scale; the score is kept as 0")
    )
    highest: float = option(
        5, Option(at_least=-1e9, at_most=1e9, doc="of the judge's scale; the score is kept as 1")
    )
    max_tokens: int = option(300, Option(at_least=1, at_most=10**9, doc="of the judge's reply"))
    timeout_seconds: float = option(60, Option(above=0, at_most=YEAR_SECONDS, doc="of one call"))
    concurrency: int = option(4, Option(at_least=1, at_most=100, doc="calls at once"))
    options: Mapping[str, Any] = option(
        {},
        Option(
            rule=_options,
            takes_rest_of=lambda table: table.get("kind", "judge") != "judge",
            doc="all further keys of the table of a scorer of yours",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.is_judge and self.model is None:
            rule = "must name the model that judges"
            raise checks.refuse("model", self.model, rule, mend='For example model = "gpt-4.1".')
        checks.number("highest", self.highest, above=self.lowest)
        if self.is_judge and self.options:
            name = sorted(self.options)[0]
            raise checks.refuse(name, self.options[name], "is no setting of a judge")

    @property
    def is_judge(self) -> bool:
        """Whether a model is asked."""
        return self.kind == "judge"
