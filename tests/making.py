"""Components by family, kind and option values, as a config builds them."""

from typing import Any

from robopolicy.components import build, options_from


def make(family: str, kind: str, *context: Any, **options: Any) -> Any:
    """The component `kind` of `family` with these options, built from `context`."""
    return build(options_from(family, kind, options), *context)
