"""Readers that wrap another reader and edit each demo when it is read: one class per edit of `robopolicy.demos.edit`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robopolicy.demos.findings import CLOCK
from robopolicy.demos.formats.base import (
    ChangedReader,
    DemoReader,
    RowShapes,
    action_spec_of,
    row_difference,
    row_shapes,
)
from robopolicy.demos.idle import IdleSteps
from robopolicy.demos.packing import by_number
from robopolicy.demos.tokens import IDENTITY
from robopolicy.types import STEP_ARRAYS, TOKEN_VALID_KEY, Demo, DemoFormatError


class OtherKeys(ChangedReader):
    """Drops and renames observation keys.

    Raises (in `read`):
        DemoFormatError: a demo lacks one of the keys, or already has another key with the new name.
    """

    def __init__(self, source: DemoReader, drop: Iterable[str], rename: Mapping[str, str]) -> None:
        super().__init__(source)
        self._drop, self._rename = frozenset(drop), dict(rename)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`; `keys` are the names after renaming."""
        old = {new: key for key, new in self._rename.items()}
        demo = self.source.read(name, None if keys is None else [old.get(key, key) for key in keys])
        if keys is None and (missing := sorted((self._drop | set(self._rename)) - set(demo.obs))):
            raise DemoFormatError(
                f"{self.path.name}, {name}: no key {missing[0]!r}; it has: {', '.join(sorted(demo.obs))}"
            )
        obs: dict[str, np.ndarray] = {}
        for key, values in demo.obs.items():
            new = self._rename.get(key, key)
            if key in self._drop:
                continue
            if new in obs:
                raise DemoFormatError(
                    f"{self.path.name}, {name}: two keys would be called {new!r}; give it another new name"
                )
            obs[new] = values
        return replace(demo, obs=obs)


class TrimmedIdle(ChangedReader):
    """Shortens each pause to its last `longest` steps; observation keys that hold a clock are shifted to close the gap."""

    def __init__(self, source: DemoReader, longest: int) -> None:
        super().__init__(source)
        self._longest = longest
        rows = [source.read(name, keys=()).actions for name in source.names]
        self._idle = IdleSteps(rows, action_spec_of(source, rows))
        cut = sum(len(actions) - len(self._idle.kept(actions, longest)) for actions in rows)
        self.notes += (f"{cut} idle steps of {sum(map(len, rows))} are left out",)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        demo = self.source.read(name, keys)
        kept = self._idle.kept(demo.actions, self._longest)
        return rows_of(demo, kept, {key: _joined(demo.obs[key], kept) for key in demo.obs if CLOCK.fullmatch(key)})

    def clock(self, name: str) -> np.ndarray | None:
        """See `DemoReader`."""
        times = self.source.clock(name)
        if times is None:
            return None
        return _joined(times, self._idle.kept(self.source.read(name, keys=()).actions, self._longest))


class Resampled(ChangedReader):
    """Resamples to a lower rate: each new step covers the recorded steps from its time up to the time of the next one.

    Observations, tokens and simulator states are those of the recorded step nearest to the new step's time. Actions are
    combined over the covered steps: the last absolute target, the sum of deltas (also of rotation vectors, which is exact
    only for rotations about one axis), the mean of velocities, the last gripper command. The reward is that of the last
    covered step; `dones` is set if any covered step has it set.

    Raises:
        DemoFormatError: the demos declare no rate, or not whether their arm columns are deltas, or `rate_hz` is not in
            (0, declared rate].
    """

    def __init__(self, source: DemoReader, rate_hz: float) -> None:
        super().__init__(source)
        spec = action_spec_of(source)
        name = source.path.name
        if spec.rate_hz is None:
            raise DemoFormatError(f"{name} declares no rate to resample from; expected rate_hz in its action_spec")
        if not 0 < rate_hz <= spec.rate_hz:
            raise DemoFormatError(
                f"{name} has {spec.rate_hz:g} Hz; expected a new rate in (0, {spec.rate_hz:g}], got {rate_hz:g}"
            )
        if spec.kind == "unknown" and spec.joint_columns and spec.space != "joint_velocity":
            raise DemoFormatError(
                f"{name} does not declare whether its arm columns are deltas, which add up, or absolute targets; expected "
                "kind in its action_spec"
            )
        self._ratio = spec.rate_hz / rate_hz
        self._spec = spec
        self.action_spec = replace(spec, rate_hz=rate_hz)
        self.action_facts = {}  # the spec is complete now; nothing is left to infer
        if spec.kind == "delta" and self._ratio > 1:
            self.notes += (f"deltas are added up: an action may be {np.ceil(self._ratio):g} times as large as before",)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        demo = self.source.read(name, keys)
        first, nearest, last = self._steps(len(demo))
        changed: dict[str, Any] = {"actions": self._commands(demo.actions, first, last)}
        if demo.executed_actions is not None:
            changed["executed_actions"] = self._commands(demo.executed_actions, first, last)
        if demo.rewards is not None:
            changed["rewards"] = demo.rewards[last]
        if demo.dones is not None:
            changed["dones"] = np.maximum.reduceat(demo.dones, first)
        return replace(rows_of(demo, nearest, {}), **changed)

    def clock(self, name: str) -> np.ndarray | None:
        """See `DemoReader`."""
        times = self.source.clock(name)
        return None if times is None else times[self._steps(len(times))[1]]

    def _steps(self, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each new step: the first recorded step that it covers, the one nearest to its time, and the last covered."""
        # 1e-9: a time that is a recorded step up to rounding counts as that step.
        due = np.arange(max(1, int(np.ceil(steps / self._ratio - 1e-9)))) * self._ratio
        first = np.ceil(due - 1e-9).astype(int)
        first = first[first < steps]
        nearest = np.floor(due[: len(first)] + 0.5 - 1e-9).astype(int)
        return first, np.minimum(nearest, steps - 1), np.r_[first[1:] - 1, steps - 1]

    def _commands(self, rows: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The actions of the new steps: sums of deltas, means of velocities, the last value of everything else."""
        spec, found = self._spec, rows[last].copy()
        counts = (last - first + 1)[:, None]
        joints, base = list(spec.joint_columns), list(spec.base)
        if joints and spec.space == "joint_velocity":
            base += joints
        elif joints and spec.kind == "delta":
            found[:, joints] = np.add.reduceat(rows[:, joints], first)
        if base:
            found[:, base] = np.add.reduceat(rows[:, base], first) / counts
        return found


class Merged(ChangedReader):
    """The demos of several readers. They keep their names if these are unique; otherwise all are renumbered in order.

    Raises:
        DemoFormatError: keys, action columns or rates differ.
    """

    def __init__(self, sources: Sequence[DemoReader]) -> None:
        super().__init__(sources[0])
        everything = [(source, name) for source in sources for name in source.names]
        own = [name for _, name in everything]
        if len(set(own)) == len(own):
            places = dict(zip(own, everything, strict=True))
            self.origin = {name: places[name] for name in by_number(own, self.path.name)}
        else:
            self.origin = {f"demo_{number}": place for number, place in enumerate(everything)}
        """Name in the merged file -> (source reader, name in that reader)."""
        self.names = tuple(self.origin)
        here = {(id(source), name): new for new, (source, name) in self.origin.items()}
        self.filter_keys = {
            key: by_number(
                [here[id(source), name] for source in sources for name in source.filter_keys.get(key, ())], key
            )
            for key in dict.fromkeys(key for source in sources for key in source.filter_keys)
        }
        self._rows = _require_alike(sources)
        self._take_facts(sources)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        source, old = self.origin[name]
        demo = source.read(old, keys)
        if keys is None and len(self._rows) and (text := row_difference(self._rows, row_shapes(demo))):
            raise DemoFormatError(f"{source.path.name}, {old}: {text}")
        return replace(demo, name=name)

    def clock(self, name: str) -> np.ndarray | None:
        """See `DemoReader`."""
        source, old = self.origin[name]
        return source.clock(old)

    def _take_facts(self, sources: Sequence[DemoReader]) -> None:
        """Take the first declared action spec and the attributes of the first reader; add a note for each that differs."""
        declared = [source for source in sources if source.action_spec is not None]
        if declared:
            self.action_spec, self.action_facts = declared[0].action_spec, {}
        self.notes = tuple(dict.fromkeys(note for source in sources for note in source.notes))
        for source in sources:
            if declared and source.action_spec is None:
                self.notes += (f"{source.path.name} declares no action columns; taken from {declared[0].path.name}",)
        about = {key: value for key, value in sources[0].attributes.items() if key != "total"}
        for source in sources[1:]:
            if source.attributes.get(IDENTITY) != about.get(IDENTITY):
                raise DemoFormatError(
                    f"{source.path.name} and {self.path.name} hold tokens of different encoders; encode the merged file"
                )
            for key in sorted({*about, *source.attributes} - {"total", "action_spec", "robopolicy_version", "edits"}):
                if str(source.attributes.get(key)) != str(about.get(key)):
                    self.notes += (f"{key} of {source.path.name} differs from {self.path.name}'s, which is kept",)


class Chosen(ChangedReader):
    """A selection of the demos, optionally with new instructions and additional filter keys.

    Tokens depend on the instruction, so they are dropped if instructions change.
    """

    def __init__(
        self,
        source: DemoReader,
        names: Sequence[str],
        instructions: Mapping[str, str] | None = None,
        filter_keys: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(source)
        self._instructions = instructions or {}
        self.names, chosen = tuple(names), set(names)
        masks = {**source.filter_keys, **(filter_keys or {})}
        left = {key: [name for name in members if name in chosen] for key, members in masks.items()}
        self.filter_keys = {key: members for key, members in left.items() if members or not masks[key]}
        self.lengths: dict[str, int] = {}
        """Name -> number of steps, for each demo read so far."""
        if self._instructions and source.read(names[0], keys=()).tokens is not None:
            self.attributes = {key: value for key, value in self.attributes.items() if key != IDENTITY}
            self.notes += ("tokens were made from the old instructions and are left out; encode the new file",)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        demo = self.source.read(name, keys)
        self.lengths[name] = len(demo)
        if not self._instructions:
            return demo
        attributes = {key: value for key, value in demo.attributes.items() if key != TOKEN_VALID_KEY}
        instruction = self._instructions.get(name, demo.instruction) or None
        return replace(demo, instruction=instruction, tokens=None, attributes=attributes)


def rows_of(demo: Demo, rows: np.ndarray, obs: Mapping[str, np.ndarray]) -> Demo:
    """The demo with only the steps `rows` (integer indices); observations in `obs` replace the demo's."""
    arrays = {key: getattr(demo, key) for key in STEP_ARRAYS}
    taken = {key: None if values is None else values[rows] for key, values in arrays.items()}
    return replace(
        demo,
        obs={key: values[rows] for key, values in demo.obs.items()} | dict(obs),
        actions=demo.actions[rows],
        **taken,
    )


def _joined(times: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The times (T, ...) of the steps with indices `kept`, each reduced by the total time cut out before it."""
    lasting = np.diff(times, axis=0)[kept[:-1]]
    return np.concatenate([times[:1], times[:1] + np.cumsum(lasting, axis=0)]).astype(times.dtype)


def _require_alike(sources: Sequence[DemoReader]) -> RowShapes:
    """The keys and shapes (`row_shapes`) that all demos must have; empty for a single source, which is not checked.

    Raises:
        DemoFormatError: the first demos of two sources, or their action columns or rates, differ.
    """
    if len(sources) == 1:
        return {}
    first = row_shapes(sources[0].read(sources[0].names[0]))
    facts: dict[str, tuple[str, Any]] = {}
    for source in sources:
        name = source.path.name
        if text := row_difference(first, row_shapes(source.read(source.names[0]))):
            raise DemoFormatError(f"{name}: {text}; merging needs the same keys and action columns")
        spec = source.action_spec
        known = dict(source.action_facts) if spec is None else spec.to_dict()
        for field, value in known.items():
            if value in (None, "unknown"):
                continue
            where, before = facts.setdefault(field, (name, value))
            if before != value:
                advice = "resample one with --rate" if field == "rate_hz" else "merging needs the same action columns"
                raise DemoFormatError(f"{name}: {field} of the actions is {value}, in {where} {before}; {advice}")
    return first
