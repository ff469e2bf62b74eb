"""Selects which parts of the demo files are used: training and held-out demos, keys, tokens and action columns."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from robopolicy.components import ConfigError, build, require
from robopolicy.demos.actions import infer_action_spec
from robopolicy.demos.findings import MIN_STROKE, gripper_findings
from robopolicy.demos.formats import DemoReader
from robopolicy.demos.rows import DemoRows, TokenPooling, read_flags, row_types
from robopolicy.experiment.config import DataConfig
from robopolicy.model.encoders.precomputed import PrecomputedOptions
from robopolicy.model.poolings.max import MaxOptions
from robopolicy.model.poolings.mean import MeanOptions
from robopolicy.types import TOKENS_KEY, ActionSpec, DemoFormatError

SPLIT_SEED = 0
"""Seed of the split of a file without filter keys: the same demos are held out for every training seed."""

LOG = logging.getLogger(__name__)


def split_names(reader: DemoReader, data: DataConfig) -> tuple[list[str], list[str]]:
    """Names of the training and of the held-out demos of one file.

    The file's filter keys name them. Without a filter key for held-out demos, the fraction `data.valid_fraction` of the
    training demos is held out: at least one demo if there are two or more, none if the fraction is 0.

    Raises:
        ConfigError: a filter key is missing, or both splits hold the same demo.
    """
    masks, where, standard = reader.filter_keys, reader.path.name, DataConfig()
    for option, key, usual in (
        ("train_filter", data.train_filter, standard.train_filter),
        ("valid_filter", data.valid_filter, standard.valid_filter),
    ):
        require(
            key in masks or key == usual,
            f"--data.{option} {key}: {where} has no such filter key; it has: {_listed(masks)}",
        )
    train = list(masks.get(data.train_filter, reader.names))
    # If both options name the same filter key, its demos are split at random below.
    if data.valid_filter in masks and data.valid_filter != data.train_filter:
        valid = list(masks[data.valid_filter])
        if data.train_filter not in masks:
            train = [name for name in train if name not in set(valid)]
        if shared := sorted(set(train) & set(valid)):
            raise ConfigError(
                f"{where}: {shared[0]} is in both {data.train_filter} and {data.valid_filter}; choose filter keys "
                "without common demos"
            )
    else:
        train, valid = _held_out(train, data.valid_fraction)
    train = train[: data.train_demos]
    require(train, f"{where}: no training demo; it has {len(reader.names)} demos and the filter keys {_listed(masks)}")
    return train, valid


def choose_keys(reader: DemoReader, name: str, data: DataConfig, with_tokens: bool) -> tuple[list[str], list[str]]:
    """The policy's observation keys, including `tokens` if `with_tokens`, and the keys for auxiliary losses only.

    The keys of the demo `name` stand for those of all demos.

    Raises:
        DemoFormatError: a key or camera that the config names is missing; those present are listed.
    """
    rows = row_types(reader, name)
    cameras = [key for key, (shape, dtype) in rows.items() if len(shape) == 3 and dtype == np.uint8]
    vectors = [key for key, (shape, _) in rows.items() if len(shape) <= 1]
    chosen_cameras = cameras if data.cameras is None else list(data.cameras)
    for key in chosen_cameras:
        if key not in cameras:
            raise DemoFormatError(f"{reader.path.name}, {name}: no camera '{key}'; it has: {_listed(cameras)}")
    for key in (*(data.obs_keys or ()), *data.privileged_keys):
        if key not in rows:
            raise DemoFormatError(f"{reader.path.name}, {name}: no key '{key}'; it has: {_listed(rows)}")
    unseen = {*data.privileged_keys, *(reader.attributes.get("env_args") or {}).get("privileged", ())}
    keys = list(data.obs_keys) if data.obs_keys is not None else [key for key in vectors if key not in unseen]
    tokens = [TOKENS_KEY] if with_tokens else []
    if data.cameras is None:
        for key, (shape, dtype) in rows.items():
            if key not in (*cameras, *vectors, *unseen, *tokens) and key != TOKENS_KEY:
                raise DemoFormatError(
                    f"{reader.path.name}, {name}: {key} is {dtype} {shape}, neither a vector nor an image (uint8, "
                    "or float in [0, 1]); list the images to use in --data.cameras, or scale it by robopolicy convert --white"
                )
    require(
        keys or chosen_cameras or tokens,
        f"the policy would have no input; {reader.path.name} has: {_listed(rows)}",
    )
    return [*keys, *chosen_cameras, *tokens], list(data.privileged_keys)


def choose_action_spec(readers: Sequence[DemoReader], rows: DemoRows, data: DataConfig) -> ActionSpec:
    """The action spec: from the config, else from the files, else by the default rule.

    Raises:
        DemoFormatError: the files' action specs differ from each other, or do not fit the action rows.
        ConfigError: the config names columns that do not exist, or a gripper column without exactly two values.
    """
    declared = {reader.path.name: reader.action_spec for reader in readers if reader.action_spec is not None}
    where = ", ".join(declared) or "the demos"
    spec = _agreed(declared) if declared else None
    if spec is None or data.arm is not None or data.gripper is not None:
        inferred = infer_action_spec([rows.actions])
        facts = {key: value for reader in readers for key, value in reader.action_facts.items()}
        if spec is not None:
            facts |= {"kind": spec.kind, "space": spec.space, "rate_hz": spec.rate_hz}
        spec = _overridden(inferred, rows.actions, data)
        grippers = set(facts.pop("continuous_gripper", ())) & set(spec.arm_columns)
        spec = replace(spec, continuous_gripper=tuple(sorted(grippers)), **facts)
    if spec.width != rows.actions.shape[1]:
        raise DemoFormatError(f"{where}: actions have {rows.actions.shape[1]} columns but the action spec {spec.width}")
    for finding in gripper_findings(rows.actions, spec):
        if finding.severity == "problem":
            raise DemoFormatError(f"{where}: {finding.text}")
    binary = [
        _values(rows.actions[:, column], column, pair)
        for column, pair in zip(spec.gripper_columns, spec.gripper_values, strict=True)
    ]
    continuous = [
        _ends(rows.actions[:, column], column, ends)
        for column, ends in zip(spec.continuous_gripper, spec.continuous_gripper_values, strict=True)
    ]
    return replace(spec, gripper_values=tuple(binary), continuous_gripper_values=tuple(continuous))


def _values(actions: np.ndarray, column: int, declared: tuple[float, float]) -> tuple[float, float]:
    """The two values of a binary gripper: the declared pair, or those found in its actions (rows,)."""
    values = np.unique(actions).tolist()
    if set(values) <= set(declared):
        return declared
    named = " and ".join(f"{value:g}" for value in values)
    LOG.info(
        "gripper   action %d has the values %s; the second is label 1, the robot profile says which one opens",
        column,
        named,
    )
    return values[0], values[1]


def _ends(actions: np.ndarray, column: int, ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of a continuous gripper: as declared, or inferred from its actions (rows,) if these do not fit the default."""
    low, high = float(actions.min()), float(actions.max())
    beyond = low < -1.002 or high > 1.002
    # Values that are never negative, or that span little of -1 .. 1, are openings in metres or fractions.
    opening = high > low and (low >= 0 or high - low < MIN_STROKE * 2)
    if ends != (-1.0, 1.0) or not (beyond or opening):
        return ends
    LOG.info("gripper   action %d holds %g .. %g; the first end is taken to be %g", column, low, high, high)
    return high, low


def intervention_weights(
    readers: Sequence[DemoReader], names: Sequence[Sequence[str]], data: DataConfig
) -> np.ndarray | None:
    """Sampling weight of each row of these demos as the start of a segment; None: all equal.

    Raises:
        ConfigError: the config sets a weight for interventions, but the demos have none.
    """
    if data.intervention_weight is None:
        return None
    operated = read_flags(list(zip(readers, names, strict=True)), "intervention")
    require(operated.any(), "--data.intervention_weight: no step with `intervention` 1; record with run --intervene")
    LOG.info("operator  had the robot in %d of %d steps", operated.sum(), operated.size)
    return np.where(operated, data.intervention_weight, 1.0)


def pooling_ahead(encoder: Any, pooling: Any) -> TokenPooling | None:
    """The policy's pooling, to be applied to the file's tokens ahead of time; None if that is not possible.

    It is possible for max or mean pooling of the stored tokens themselves, without learned weights before it. The policy
    pools the kept vectors again, which changes nothing: each of the `latent` vectors is a bin of its own.
    """
    passes_on = isinstance(encoder, PrecomputedOptions) and encoder.hidden == 0
    if not passes_on or not isinstance(pooling, MaxOptions | MeanOptions):
        return None
    latent, keeps_values = pooling.latent, isinstance(pooling, MaxOptions)
    pool = build(pooling, 1)

    def pooled(tokens: Tensor, token_valid: Tensor | None) -> Tensor:
        if tokens.shape[1] < latent:
            return tokens
        # A maximum is one of the stored values; a mean is computed in float32, as the policy would compute it.
        values = tokens if keeps_values else tokens.float()
        valid = None if token_valid is None else token_valid.expand(values.shape[:2])
        return pool(values, valid).unflatten(-1, (latent, tokens.shape[2]))

    return pooled


def _overridden(inferred: ActionSpec, actions: np.ndarray, data: DataConfig) -> ActionSpec:
    """The inferred spec with the arm and gripper columns that the config declares."""
    if data.arm is None and data.gripper is None:
        return inferred
    width = actions.shape[1]
    named = {*(data.arm or ()), *(data.gripper or ())}
    if outside := sorted(column for column in named if not 0 <= column < width):
        raise ConfigError(
            f"--data.arm or --data.gripper names column {outside[0]}; actions have columns 0 .. {width - 1}"
        )
    gripper = data.gripper if data.gripper is not None else [c for c in inferred.gripper_columns if c not in named]
    constant = {column: value for column, value in inferred.constant.items() if column not in named}
    rest = [column for column in range(width) if column not in gripper and column not in constant]
    arm = list(data.arm) if data.arm is not None else rest
    if missing := sorted(set(rest) - set(arm)):
        raise ConfigError(
            f"--data.arm leaves out column {missing[0]}, which is not constant; name it in arm or gripper"
        )
    pairs = []
    for column in gripper:
        values = np.unique(actions[:, column])
        require(
            len(values) == 2, f"--data.gripper {column}: that column has {len(values)} values; a binary gripper has two"
        )
        pairs.append((float(values[0]), float(values[1])))
    return ActionSpec(arm=arm, gripper=list(gripper), constant=constant, gripper_values=pairs)


def _agreed(declared: dict[str, ActionSpec]) -> ActionSpec:
    (first, spec), *others = declared.items()
    for name, other in others:
        pairs = {field.name: (getattr(other, field.name), getattr(spec, field.name)) for field in fields(spec)}
        if differing := [f"{key} {one} and {two}" for key, (one, two) in pairs.items() if one != two]:
            raise DemoFormatError(
                f"{name} and {first} describe their actions differently: {', '.join(differing)}; convert one to match, or "
                "train on them separately"
            )
    return spec


def _held_out(names: list[str], fraction: float) -> tuple[list[str], list[str]]:
    if fraction == 0 or len(names) < 2:
        return names, []
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    chosen = set(np.random.default_rng(SPLIT_SEED).permutation(len(names))[:count].tolist())
    return (
        [name for place, name in enumerate(names) if place not in chosen],
        [name for place, name in enumerate(names) if place in chosen],
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
