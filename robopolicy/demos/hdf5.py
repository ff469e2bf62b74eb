"""The native demo file: the robomimic v1 HDF5 layout, plus instructions, seeds, tokens and executed actions.

    data                          attributes: total (steps), env_args, action_spec (JSON), renderer, robopolicy_version
    data/demo_<i>                 attributes: num_samples, instruction, seed, and the demo's own attributes
    data/demo_<i>/actions         (T, width); optional: executed_actions, rewards, dones, states, tokens (T, N, D)
    data/demo_<i>/obs/<key>       (T, ...); images uint8 (T, height, width, 3); nested groups read as `outer/inner`
    mask/<filter key>             byte strings b"demo_3"

Files of robomimic, robosuite, MimicGen and LIBERO can be opened without conversion. Tokens may also be in a second file beside
the demo file, see `robopolicy.demos.tokens`. Reading never changes a file.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.actions import robosuite_action_facts
from robopolicy.demos.checksums import require_seal, verified
from robopolicy.demos.formats.base import DemoReader, requested_keys, require_demo
from robopolicy.demos.guarded import attributes_of, damage_named, dataset_in, datasets_below, group_in
from robopolicy.demos.images import as_image, image_form
from robopolicy.demos.packing import CHECKSUMS, by_number
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import action_spec_from, env_args_of, is_integer, json_object
from robopolicy.demos.tokens import IDENTITY, TokenFile, mark_of, tokens_beside
from robopolicy.demos.writer import DemoWriter
from robopolicy.types import STEP_ARRAYS, TOKEN_VALID_KEY, TOKENS_KEY, Demo, DemoFormatError, require_rows

__all__ = ["DemoFile", "DemoWriter", "read_rows"]


TOKENS_PADDED = "tokens_padded"
"""Attribute that `DemoFile` adds to a file with tokens: whether any of the tokens are padding."""
OBS = "obs/"
"""Prefix of the names of observation datasets."""


class DemoFile(DemoReader):
    """A demo file opened for reading; a context manager.

    Args:
        path: the demo file.
        tokens: whether to look for a token file beside the demo file; tokens in the demo file itself are always read.

    Raises:
        DemoFormatError: the file can't be read as demonstrations; the one-line message names the file, demo and key.
    """

    format_name = "robomimic"

    def __init__(self, path: str | Path, *, tokens: bool = True) -> None:
        super().__init__(Path(path))
        where = self.path.name
        self._file = open_hdf5(self.path)
        self._tokens: TokenFile | None = None
        try:
            self._data = group_in(self._file, "data", where)
            self.attributes = attributes_of(self._file, where) | attributes_of(self._data, where)
            self.attributes["env_args"] = env_args_of(self.attributes.get("env_args", "{}"), where)
            if (spec := self.attributes.get("action_spec")) is not None:
                described = f"{where}: action_spec"
                self.action_spec = action_spec_from(json_object(spec, described), described)
            self.attributes["action_spec"] = self.action_spec
            self.action_facts = robosuite_action_facts(self.attributes["env_args"])
            if IDENTITY in self.attributes:
                json_object(self.attributes[IDENTITY], f"{where}: {IDENTITY}")
            self._checksums = require_seal(self._file, where)
            self.attributes.pop(CHECKSUMS, None)
            self.names = by_number(self._data, where)
            if not self.names:
                raise DemoFormatError(f"{where}: no demo in it; expected groups data/demo_0, data/demo_1, ...")
            first = self._group(self.names[0])
            if "states" in first and "obs" not in first:
                raise DemoFormatError(
                    f"{where}: robosuite's raw layout, states and actions without observations, can't be trained on. "
                    "Render it first with robosuite's own simulator (robomimic: dataset_states_to_obs.py)"
                )
            self.filter_keys = self._masks()
            self._open_tokens(beside=tokens)
            with suppress(DemoFormatError):  # a damaged demo is refused when it is read
                self.notes = self._left_out()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._tokens is not None:
            self._tokens.close()

    def datasets(self, name: str) -> Mapping[str, h5py.Dataset] | None:
        """The datasets with one row per step, by name (`actions`, `obs/<key>`, `tokens`, ...); only their lengths are checked.

        Raises:
            DemoFormatError: actions or observations are missing, or the lengths differ from each other or from num_samples.
        """
        return self._datasets(name)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """Read one demo, or only its observation `keys`; images are converted by `images.as_image`.

        If a demo lacks the attribute `instruction`, the instruction is taken from `ep_meta`, where RoboCasa keeps it.

        Raises:
            DemoFormatError: an observation key is missing (available keys are listed), lengths differ, a value that was read
                is not finite, or the data does not match the checksums stored with it.
        """
        datasets, where = self._datasets(name), f"{self.path.name}, {name}"
        requested = requested_keys([key.removeprefix(OBS) for key in datasets if key.startswith(OBS)], keys, where)
        beside = self._tokens_of(name)
        inside = [key for key in STEP_ARRAYS if key in datasets and not (key == TOKENS_KEY and beside)]
        written = attributes_of(self._group(name), where)
        seed, instruction = _demo_facts(written, where)
        demo = Demo(
            name=name,
            obs={key: read_rows(datasets[OBS + key], f"{where}: {OBS}{key}") for key in requested},
            actions=read_rows(datasets["actions"], f"{where}: actions"),
            instruction=instruction,
            seed=seed,
            attributes={k: value for k, value in written.items() if k not in ("num_samples", "seed", "instruction")},
            **{key: read_rows(datasets[key], f"{where}: {key}") for key in inside},
        )
        demo = verified(demo, where, unread=datasets, expected=self._checksums)
        obs = {key: as_image(values) for key, values in demo.obs.items()}
        demo = replace(demo, obs=obs, instruction=instruction or _language(written.get("ep_meta")))
        if beside is None:
            return demo
        tokens = read_rows(datasets[TOKENS_KEY], f"{where}: {TOKENS_KEY}")
        demo = replace(demo, tokens=tokens, attributes={**demo.attributes, TOKEN_VALID_KEY: beside.valid(name)})
        beside.require_match(demo, mark_of(written, demo.actions))
        return demo

    def demo_attributes(self, name: str) -> dict[str, Any]:
        """All attributes of one demo: num_samples, instruction, seed, model_file, ..., and `token_valid` if it has tokens."""
        found = attributes_of(self._group(name), f"{self.path.name}, {name}")
        beside = self._tokens_of(name)
        return found if beside is None else {**found, TOKEN_VALID_KEY: beside.valid(name)}

    def mark(self, name: str) -> int:
        """A number that identifies the demo's content (`tokens.mark_of`); it is stored with tokens made from the demo."""
        where = f"{self.path.name}, {name}"
        actions = read_rows(dataset_in(self._group(name), "actions", where), f"{where}: actions")
        return mark_of(attributes_of(self._group(name), where), actions)

    @property
    def has_tokens_inside(self) -> bool:
        """Whether the tokens are in the demo file itself, judged by the first demo."""
        return TOKENS_KEY in self._group(self.names[0])

    def _datasets(self, name: str) -> dict[str, h5py.Dataset]:
        require_demo(self, name)
        group, where = self._group(name), f"{self.path.name}, {name}"
        if "obs" not in group:
            raise DemoFormatError(f"{where}: no group obs; it has: {', '.join(sorted(group)) or 'nothing'}")
        inside = [key for key in STEP_ARRAYS if key in group]
        if "states" in inside and group.get("states", getclass=True) is h5py.Group:
            inside.remove("states")  # Isaac Lab keeps the simulator's state as a tree; training does not use it
        found = {key: dataset_in(group, key, where) for key in ("actions", *inside)}
        if (beside := self._tokens_of(name)) is not None:
            found[TOKENS_KEY] = beside.dataset(name)
        found |= {OBS + key: data for key, data in datasets_below(group_in(group, "obs", where), where).items()}
        require_rows(found, where)
        steps = len(found["actions"])
        declared = attributes_of(group, where).get("num_samples", steps)
        if declared != steps:
            raise DemoFormatError(f"{where}: num_samples is {str(declared)[:40]} but there are {steps} actions")
        return found

    def _masks(self) -> dict[str, list[str]]:
        """Filter key -> names of its demos; all of them must be in the file."""
        if "mask" not in self._file:
            return {}
        where, masks = self.path.name, {}
        for key, dataset in datasets_below(group_in(self._file, "mask", where), where, text=True).items():
            with damage_named(f"{where}: mask/{key}"):
                names = [bytes(name).decode() for name in np.atleast_1d(dataset[()])]
            if unknown := sorted(set(names) - set(self.names)):
                raise DemoFormatError(
                    f"{where}: mask/{key} names {', '.join(unknown[:3])}, which the file does not hold"
                )
            masks[key] = by_number(names, where)
        return masks

    def _left_out(self) -> tuple[str, ...]:
        """Notes on what is not read from the demos and on images that are converted, judged by the first demo."""
        group, datasets = self._group(self.names[0]), self._datasets(self.names[0])
        unread = [key for key in sorted(group) if key not in ("obs", *datasets)]
        notes = (f"of each demo, {', '.join(unread)} is not read",) if unread else ()
        for key, data in datasets.items():
            if key.startswith(OBS) and (form := image_form(data.shape[1:], data.dtype)) is not None:
                notes += (f"{key}: {form}; taken as images, uint8 (height, width, 3)",)
        return notes

    def _open_tokens(self, beside: bool) -> None:
        """Open the token file if there is one; add its encoder, and whether any tokens are padding, to `attributes`."""
        path = tokens_beside(self.path)
        if beside and not self.has_tokens_inside and path.is_file():
            self._tokens = TokenFile(path)
            self.attributes[IDENTITY] = self._tokens.identity or "{}"
        if self._tokens is not None or self.has_tokens_inside:
            masks = (self.demo_attributes(name).get(TOKEN_VALID_KEY, ()) for name in self.names)
            self.attributes[TOKENS_PADDED] = any(isinstance(mask, list) and 0 in mask for mask in masks)

    def _tokens_of(self, name: str) -> TokenFile | None:
        """The token file beside the demo file, if it holds the tokens of this demo; otherwise None."""
        return self._tokens if self._tokens is not None and name in self._tokens else None

    def _group(self, name: str) -> h5py.Group:
        return group_in(self._data, name, self.path.name)


def read_rows(dataset: h5py.Dataset, where: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a dataset, in the machine's byte order, with bool converted to int64.

    Raises:
        DemoFormatError: the data is damaged or not numeric, or a value is not finite; the message begins with `where`.
    """
    with damage_named(where):
        values = np.asarray(dataset[rows])
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise DemoFormatError(f"{where} has type {values.dtype}; expected numbers of at most 64 bits")
    values = values.astype(np.int64 if values.dtype == bool else values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0]
        raise DemoFormatError(
            f"{where}: {values[tuple(bad)]} at step {(rows.start or 0) + bad[0]}; every value must be finite"
        )
    return values


def _demo_facts(attributes: Mapping[str, Any], where: str) -> tuple[int | None, str | None]:
    """Seed and instruction of a demo."""
    seed, instruction = attributes.get("seed"), attributes.get("instruction")
    if seed is not None and not is_integer(seed):
        raise DemoFormatError(f"{where}: seed is {str(seed)[:40]}; expected a whole number")
    if instruction is not None and not isinstance(instruction, str):
        raise DemoFormatError(f"{where}: instruction is {str(instruction)[:40]}; expected text")
    return seed, instruction


def _language(ep_meta: Any) -> str | None:
    """RoboCasa's instruction in the JSON attribute `ep_meta`."""
    with suppress(DemoFormatError):
        found = json_object(ep_meta, "ep_meta").get("lang")
        return found if isinstance(found, str) and found else None
    return None
