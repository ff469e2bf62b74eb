"""What the verbs share of argument parsing: dashed flags, `--config`, dotted overrides, one line for a mistake."""

from argparse import ArgumentError
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from robopolicy.config import ConfigError, check_config_file, collect_lists, plain_message


def verb_parser(verb: str, description: str) -> ArgumentParser:
    """A parser for one verb, with `--config FILE.yaml` whose values come before those of the command line."""
    parser = ArgumentParser(prog=f"robopolicy {verb}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with values for any of these options")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The parsed options, dataclasses made; what the command line says goes before what `--config` says, in any order.

    Raises:
        ConfigError: an unknown option, a missing one, or a value of the wrong type.
    """
    files, rest = _config_files(collect_lists(arguments))
    for file in files:
        check_config_file(file)
    try:  # files first, since the parser lets whatever comes later win
        return parser.instantiate(parser.parse_args([f"--config={file}" for file in files] + rest))
    except (ArgumentError, TypeError) as error:
        where = f"{', '.join(files)}: " if "is not accepted" in str(error) else ""
        raise ConfigError(f"{where}{plain_message(error)}; see {parser.prog} --help") from error


def require(options: Namespace, low: int, *names: str) -> None:
    """Refuse a number below `low`.

    Raises:
        ConfigError: in one line that names the option.
    """
    for name in names:
        if options[name] < low:
            raise ConfigError(f"--{name.replace('_', '-')} is {options[name]}; expected {low} or more")


def add_precision(parser: ArgumentParser) -> None:
    """Add `--precision`."""
    parser.add_argument(
        "--precision",
        type=Literal["float32", "bf16", "int8"],
        default="float32",
        help="arithmetic of a run folder's policy on the CPU; an exported one has its own",
    )


def experiment_overrides(**values: object) -> list[str]:
    """Dotted overrides for those values that the command line gave."""
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def _config_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that `--config FILE` and `--config=FILE` name, and all other words."""
    files, rest = [], []
    words = iter(arguments)
    for word in words:
        file = list(islice(words, 1)) if word == "--config" else []
        if word.startswith("--config="):
            file = [word.removeprefix("--config=")]
        if file:
            files += file
        else:
            rest.append(word)
    return files, rest
