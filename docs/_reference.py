"""The pages of Reference, made from the code when the site is built: every verb, every option, every public name.

A hook of mkdocs; see `hooks` in mkdocs.yml. The pages are not files of the repository.
"""

import contextlib
import dataclasses
import inspect
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import docstring_parser

import robopolicy
from robopolicy import cli
from robopolicy.cli.parsing import meanings
from robopolicy.components import BUILT_IN, FAMILIES, ConfigError, component, kinds
from robopolicy.experiment.config import COMPONENT_SECTIONS
from robopolicy.experiment.reading import PLAIN_SECTIONS


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of docs/."""
    from mkdocs.structure.files import File

    for name, page in {"verbs": verbs_page, "options": options_page, "api": api_page}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def verbs_page() -> str:
    """Every verb's `--help`."""
    parts = ["# Verbs", "What `robopolicy VERB --help` prints. Exit codes: 0 success, 1 problems found, 2 usage error."]
    for verb, (_, line) in cli.VERBS.items():
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            cli.main([verb, "--help"])
        parts += [f"## {verb}", f"{line[0].upper()}{line[1:]}.", f"```text\n{shown.getvalue().strip()}\n```"]
    return "\n\n".join(parts)


def options_page() -> str:
    """Every section of a config, and every kind of every component family, with defaults."""
    parts = [
        "# Config options",
        "Every option is `--SECTION.OPTION VALUE` of `train`, and `SECTION: {OPTION: VALUE}` in a file for `--config`. "
        "The kinds below are the built-in ones; `robopolicy components FAMILY` lists those of installed plug-ins too.",
    ]
    for section, made in PLAIN_SECTIONS.items():
        parts += [f"## {section}", _about(made), *_table(made)]
    for family in FAMILIES:
        chosen = f" (section `{family}`, option `kind`)" if family in COMPONENT_SECTIONS else ""
        parts.append(f"## Family {family}{chosen}")
        for kind in kinds(family):
            try:
                found = component(family, kind)
            except (ImportError, ConfigError) as error:
                parts += [f"### {family} `{kind}`", f"Not available where this page was built: {_cell(error)}"]
                continue
            if found.origin == BUILT_IN:
                parts += [f"### {family} `{kind}`", _about(found.make), *_table(found.options)]
    return "\n\n".join(parts)


def api_page() -> str:
    """Every public name of the package."""
    parts = ["# Python", "The public names of `robopolicy`."]
    for name in sorted(robopolicy.__all__, key=str.lower):
        parts += _described(getattr(robopolicy, name), name, "##")
    return "\n\n".join(parts)


def _described(made: Any, name: str, level: str) -> Iterator[str]:
    """Heading, signature and docstring of a class or function, and of a class's own public methods."""
    yield f"{level} {name}"
    with contextlib.suppress(ValueError, TypeError):
        signature = re.sub(r"<[^>]*object at 0x[0-9a-f]+>", "...", str(inspect.signature(made)))
        yield f"```python\n{name}{signature}\n```"
    parsed = docstring_parser.parse(inspect.getdoc(made) or "", docstring_parser.DocstringStyle.GOOGLE)
    yield "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))
    if dataclasses.is_dataclass(made):
        yield from _table(made)
    elif parsed.params:
        yield "\n".join(f"- `{each.arg_name}`: {_cell(each.description)}" for each in parsed.params)
    if parsed.returns and parsed.returns.description:
        yield f"Returns: {_cell(parsed.returns.description)}"
    if parsed.raises:
        yield "\n".join(f"- Raises `{each.type_name}`: {_cell(each.description)}" for each in parsed.raises)
    if inspect.isclass(made):
        for method, function in vars(made).items():
            if not method.startswith("_") and inspect.isfunction(function):
                yield from _described(function, f"{name}.{method}", "###")


def _table(options: type) -> Iterator[str]:
    """Option, default and meaning of each field of a dataclass."""
    rows, about = [], meanings(options)
    for field in dataclasses.fields(options):
        if field.default_factory is not dataclasses.MISSING:
            default = json.dumps(field.default_factory(), default=lambda value: type(value).__name__)
        else:
            default = "" if field.default is dataclasses.MISSING else json.dumps(field.default, default=str)
        rows.append(
            f"| `{field.name}` | {f'`{_cell(default)}`' if default else ''} | {_cell(about.get(field.name, ''))} |"
        )
    if rows:
        yield "\n".join(["| option | default | |", "|---|---|---|", *rows])


def _about(made: Any) -> str:
    return (inspect.getdoc(made) or "").partition("\n\n")[0]


def _cell(text: object) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")
