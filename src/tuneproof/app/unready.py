"""What the settings lack although they can be read: it is found before a run needs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tuneproof.errors import ConfigError
from tuneproof.providers import callable_at
from tuneproof.settings import ADAPTERS, Settings
from tuneproof.standalone import opened_target

__all__ = ["unready"]


def unready(settings: Settings) -> list[ConfigError]:
    """Each variable that holds nothing, provider that cannot be called, and target that is none.

    Nothing is called.
    """
    found = settings.unset_variables()
    told = {str(error.details["field"]).rpartition(".")[0] for error in found}
    if settings.adapters["provider"] == ADAPTERS["provider"]:
        for config in settings.providers.values():
            if not config.embedded and f"providers.{config.name}" not in told:
                found += _refused(f"providers.{config.name}", partial(callable_at, config))
    for target in settings.targets.values():
        found += _refused(f"targets.{target.name}", partial(opened_target, settings, target))
    return found


def _refused(where: str, make: Callable[[], object]) -> list[ConfigError]:
    try:
        make()
    except ConfigError as error:
        return [ConfigError(error.message, mend=error.mend, **{"field": where, **error.details})]
    return []
