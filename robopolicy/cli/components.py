"""`robopolicy components`: lists the component families, or a family's kinds with their options and origin."""

import dataclasses
import inspect
import json
from collections.abc import Sequence

from robopolicy.cli import say
from robopolicy.cli.parsing import meanings, parse, verb_parser
from robopolicy.components import BUILT_IN, FAMILIES, Component, ConfigError, component, kinds


def components(arguments: Sequence[str]) -> int:
    """List families, or the kinds of one family with their options; returns the exit code."""
    parser = verb_parser(
        "components",
        "List the component families, or every kind of one family with its options.",
        ("family", str | None, None, ", ".join(FAMILIES)),
    )
    options = parse(parser, arguments)
    if options.family is None:
        for family in FAMILIES:
            say(f"{family:<14}{', '.join(kinds(family))}")
        return 0
    for kind in kinds(options.family):
        try:
            found = component(options.family, kind)
        except (ImportError, ConfigError) as error:  # an extra that isn't installed must not hide the other kinds
            say(f"{kind}   not available: {error}")
        else:
            _show(found)
    return 0


def _show(found: Component) -> None:
    """Print a kind, the first line of its docstring, and each option with its default and meaning."""
    summary = (inspect.getdoc(found.make) or "").partition("\n")[0]
    origin = "" if found.origin == BUILT_IN else f"   [{found.origin}]"
    say(f"{found.kind}{origin}   {summary}")
    meaning = meanings(found.options)
    for field in dataclasses.fields(found.options):
        default = field.default_factory() if callable(field.default_factory) else field.default
        shown = default if isinstance(default, str) else json.dumps(default, default=str)
        say(f"    {field.name} = {shown:<{max(1, 26 - len(field.name))}}  {meaning.get(field.name, '')}".rstrip())
