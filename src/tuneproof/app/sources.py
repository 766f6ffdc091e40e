"""Opens where a run's posts come from."""

from __future__ import annotations

import inspect
from dataclasses import replace

from tuneproof.collection import Source
from tuneproof.errors import ConfigError
from tuneproof.settings import PipelineConfig, Settings, Url
from tuneproof.store import Store

__all__ = ["Sources"]


class Sources:
    """The sources of the settings; `given` is one for all pipelines."""

    def __init__(self, *, settings: Settings, store: Store, given: Source | None) -> None:
        self._settings = settings
        self._store = store
        self._given = given

    def open(self, config: PipelineConfig, posts: str | None = None) -> Source:
        """Where this run's posts come from: `posts` (a file or an address), or the settings'."""
        if self._given is not None and posts is None:
            return self._given
        described = self._settings.sources[config.source]
        if posts is not None:
            described = replace(described, url=Url(posts))
        if described.url is None:
            url = self._store.database.url.render_as_string(hide_password=False)
            described = replace(described, url=Url(url))
        opened: Source = self._settings.adapter("source")(described)
        if inspect.isawaitable(opened):
            raise ConfigError("adapters.source must not be a coroutine.", mend="Return a Source.")
        return opened
