"""Components by family, kind and option values, as a config builds them."""

from typing import Any

from robopolicy import components
from robopolicy.components import build, options_from


def make(family: str, kind: str, *context: Any, **options: Any) -> Any:
    """The component `kind` of `family` with these options, built from `context`."""
    return build(options_from(family, kind, options), *context)


def forget_plugins() -> None:
    """Drop every kind that is not built in from the registry; those that were imported meanwhile stay."""
    for key, found in [*components._registered.items()]:
        if not found.make.__module__.startswith("robopolicy."):
            del components._registered[key]
            components._by_options.pop(found.options, None)
