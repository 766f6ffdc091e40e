"""The pipelines of the settings, and those that really run: one a task where tasks train apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuneproof.app.providing import apart
from tuneproof.errors import ConfigError
from tuneproof.settings import PipelineConfig, Settings

__all__ = ["Pipelines"]


class Pipelines:
    """Finds pipelines by name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def running(self) -> Sequence[PipelineConfig]:
        """The pipelines that really run: one for each task where tasks train apart."""
        return [
            child for config in self._settings.pipelines.values() for child in self.parts(config)
        ]

    @property
    def known(self) -> Mapping[str, PipelineConfig]:
        """Both those of the settings and those that run, by name."""
        return {**self._settings.pipelines, **{config.name: config for config in self.running}}

    def parts(self, config: PipelineConfig) -> Sequence[PipelineConfig]:
        """The pipelines that run in place of this one."""
        return apart(self._settings, config)

    def get(self, name: str) -> PipelineConfig:
        """A pipeline's settings. Raises `ConfigError` for an unknown one."""
        known = self.known
        if name not in known:
            raise ConfigError(
                f"There is no pipeline {name!r}.",
                mend=f"Use one of: {', '.join(known)}.",
                field="pipeline",
            )
        return known[name]
