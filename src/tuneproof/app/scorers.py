"""Which scorers there are: those given to the App, and those that the settings describe."""

from __future__ import annotations

from collections.abc import Mapping

from tuneproof.app.providers import Providers
from tuneproof.errors import ConfigError
from tuneproof.evaluation import Judge, Scorer
from tuneproof.settings import PipelineConfig, ScorerConfig, Settings, resolved
from tuneproof.settings.recipes import OUTCOMES
from tuneproof.training import Price


def rewards_of(config: PipelineConfig) -> list[str]:
    """The scorers by which recipes of a pipeline look for prompts."""
    configs = [one for one in (config, config.succeeding) if one is not None]
    searches = [recipe.search for each in configs for recipe in each.untrained]
    return [one.reward for one in searches if one is not None and one.reward != OUTCOMES]


class Scorers:
    """Finds scorers by name; each that the settings describe is made once."""

    def __init__(
        self, *, settings: Settings, providers: Providers, given: Mapping[str, Scorer]
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._opened: dict[str, Scorer] = {}
        self.given = dict(given)

    def find(self, name: str) -> Scorer:
        """The scorer of this name.

        Raises `ConfigError` where there is none, or where it cannot be made.
        """
        if name in self.given:
            return self.given[name]
        if name not in self._opened:
            described = self._settings.scorers.get(name)
            if described is None:
                raise self._unknown(name)
            self._opened[name] = self._open(described)
        return self._opened[name]

    def used(self) -> list[str]:
        """The scorers that pipelines name, each once."""
        configs = self._settings.pipelines.values()
        named = [
            name
            for config in configs
            for name in (*config.gate_scorers, config.quality_scorer, *rewards_of(config))
            if name is not None
        ]
        return list(dict.fromkeys(named))

    def config(self, name: str) -> ScorerConfig:
        """How it is asked: as the settings say, or the defaults for one that was given."""
        return self._settings.scorers.get(name) or ScorerConfig(name=name, kind="given:scorer")

    def check(self) -> None:
        """Every scorer that a pipeline names can be had: said at the start, not days later.

        Raises `ConfigError`.
        """
        for config in self._settings.pipelines.values():
            online = () if config.quality_scorer is None else (config.quality_scorer,)
            for name in (*config.gate_scorers, *online, *rewards_of(config)):
                self.find(name)
            for name in config.gate_min_scores or ():
                if name not in (*config.gate_scorers, *self.given):
                    raise ConfigError(
                        f"pipelines.{config.name}.gate.min_scores names {name!r}, which the gate "
                        "does not ask.",
                        mend=f"Name it in pipelines.{config.name}.gate.scorers as well.",
                        field=f"pipelines.{config.name}.gate_min_scores",
                    )
            self._check_price(config.name, config.quality_scorer, config.quality_cost_usd_day)

    def _check_price(self, pipeline: str, scorer: str | None, budget: float | None) -> None:
        """A budget in USD means something only where a call has a price."""
        if scorer is None or budget is None or scorer in self.given:
            return
        described = self._settings.scorers[scorer]
        if not described.is_judge:
            return
        price = self._price(described)
        if price is None or price.prompt is None or price.completion is None:
            raise ConfigError(
                f"pipelines.{pipeline}.evaluation.quality_cost_usd_day is {budget:g}, but nobody "
                f"knows what {described.model} costs at provider {described.provider!r}.",
                mend=f'Say it: [providers.{described.provider}.prices] "{described.model}" = '
                "[prompt, completion] in USD per million tokens.",
                field=f"pipelines.{pipeline}.quality_cost_usd_day",
            )

    def _price(self, config: ScorerConfig) -> Price | None:
        return self._providers.price(config.provider, config.model or "", "answers")

    def _open(self, config: ScorerConfig) -> Scorer:
        if not config.is_judge:
            found = resolved(f"scorers.{config.name}.kind", config.kind)
            scorer: Scorer = found(**config.options) if config.options else found
            return scorer
        given = {"rubric": config.rubric, "prompt": config.prompt}
        return Judge(
            lambda: self._providers.get(config.provider),
            config.model or "",
            lowest=config.lowest,
            highest=config.highest,
            max_tokens=config.max_tokens,
            price=self._price(config),
            timeout_s=config.timeout_seconds,
            **{name: text for name, text in given.items() if text is not None},
        )

    def _unknown(self, name: str) -> ConfigError:
        known = [*self.given, *self._settings.scorers]
        others = f", or use one of {', '.join(known)}." if known else "."
        return ConfigError(
            f"There is no scorer {name!r}.",
            mend=f"Add [scorers.{name}]{others}",
            field=f"scorers.{name}",
        )
