"""Runs by config: those that differ only in their seed are training seeds of one config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robopolicy.experiment.reading import flat


@dataclass(frozen=True)
class RunGroup:
    """Runs of one config."""

    name: str
    """The fields in which this config differs from the other groups', or the runs themselves if it is the only one."""
    runs: tuple[str, ...]
    """The runs, in the order given."""


def config_values(run: str | Path) -> dict[str, Any]:
    """The fields of a run folder's config by their dotted names; empty if it has none, as an exported policy."""
    try:
        values = yaml.safe_load((Path(run) / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(values) if isinstance(values, dict) else {}


def group_runs(configs: Mapping[str, Mapping[str, Any]]) -> list[RunGroup]:
    """Groups of runs whose configs are equal apart from seeds; a run without a config is a group by itself.

    Args:
        configs: `config_values` by run.
    """
    members: dict[str, list[str]] = {}
    for run, values in configs.items():
        key = str(sorted((name, str(value)) for name, value in values.items() if not _is_seed(name))) if values else run
        members.setdefault(key, []).append(run)
    groups = list(members.values())
    fields = _differing([configs[runs[0]] for runs in groups])
    named = []
    for runs in groups:
        values = [f"{field} {configs[runs[0]].get(field, 'none')}" for field in fields]
        named.append(RunGroup(", ".join(values) if values and configs[runs[0]] else ", ".join(runs), tuple(runs)))
    return named


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the fields, apart from seeds, in which the configs differ."""
    names = dict.fromkeys(name for values in configs for name in values)
    return [name for name in names if not _is_seed(name) and len({str(values.get(name)) for values in configs}) > 1]


def _is_seed(name: str) -> bool:
    return name.rpartition(".")[2] == "seed"
