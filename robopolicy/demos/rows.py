"""Reads demos into flat arrays: the rows of all demos, concatenated, with the length of each demo."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from robopolicy.demos.formats.base import DemoReader
from robopolicy.demos.frames import Descriptor, DiskFrames, Frames, MemoryFrames, RowReader, row_reader, torch_type
from robopolicy.demos.images import image_form
from robopolicy.demos.placement import Placement, choose_placement
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ArraySpec, Demo, DemoFormatError

Picked: TypeAlias = Sequence[tuple[DemoReader, str]]
"""Demos to read: (reader, name of the demo) pairs."""
Row: TypeAlias = tuple[tuple[int, ...], np.dtype]
"""Shape and type of one row of a key."""
TokenPooling: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""Maps tokens (T, N, D) and their mask (N,), None if not used, to fewer tokens (T, L, D)."""


@dataclass(frozen=True)
class DemoRows:
    """The rows of all demos, concatenated: demo d has the rows offsets[d] .. offsets[d + 1] - 1 of every array."""

    lengths: np.ndarray
    """(demos,) int64: number of steps of each demo."""
    actions: np.ndarray
    """(rows, width) float32, with the values and columns of the files."""
    low_dim: Mapping[str, np.ndarray]
    """Low-dimensional key -> its rows (rows, ...) float32."""
    large: Mapping[str, Frames]
    """Large key -> access to its rows: images uint8, and tokens."""
    instruction_id: np.ndarray
    """(demos,) int64: index of each demo's instruction in `instructions`; -1 for a demo without one."""
    instructions: tuple[str, ...]
    """All distinct instructions, sorted."""
    source_id: np.ndarray
    """(demos,) int64: index of the source that each demo was read from."""
    seeds: tuple[int, ...]
    """Seeds of the demos that have one (demos recorded in a simulator)."""
    placement: Literal["device", "host", "disk"]
    """Where the large keys are stored."""

    @property
    def offsets(self) -> np.ndarray:
        """(demos + 1,) int64: first row of each demo; the last entry is the number of rows."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def steps(self) -> int:
        """Total number of rows, one per step."""
        return int(self.lengths.sum())

    def spec(self, key: str) -> ArraySpec:
        """Shape and type of one row of a key."""
        if key in self.low_dim:
            return ArraySpec(tuple(self.low_dim[key].shape[1:]), "float32")
        rows = self.large[key]
        return ArraySpec(tuple(rows.shape), str(rows.dtype).removeprefix("torch."))


def load_rows(
    sources: Sequence[tuple[DemoReader, Sequence[str]]],
    keys: Sequence[str],
    *,
    placement: Placement = "auto",
    device: torch.device | str = "cpu",
    threads: int = 2,
    pool_tokens: TokenPooling | None = None,
) -> DemoRows:
    """Read the named demos, source by source.

    Besides the arrays that are returned, at most one complete demo with its images is in memory.

    Args:
        sources: readers, each with the names of the demos to read from it.
        keys: observation keys; `tokens` stands for precomputed tokens, `token_valid` for their mask, which is all ones for a
            demo whose tokens have no mask.
        placement: where large keys are stored; `auto` takes the first of device, host and disk where they fit, and logs it.
        device: the model's device.
        threads: number of reading threads if the placement is `disk`.
        pool_tokens: reduces the number of tokens that are stored in memory; tokens on disk are not reduced.

    Raises:
        DemoFormatError: there are no demos, a key is missing, shapes or types differ between demos, or a file has changed
            while it was read.
    """
    picked = [(source, name) for source, names in sources for name in names]
    if not picked:
        raise DemoFormatError("no demo in this split; name files that hold some, or other filter keys")
    files = [Descriptor(source.path) for source, _ in sources if source.path.is_file()]
    masked = TOKEN_VALID_KEY in keys
    large = _large_row_types(picked[0], [key for key in keys if key != TOKEN_VALID_KEY])
    low_dim = [key for key in keys if key not in large and key != TOKEN_VALID_KEY]
    tokens = _masked_tokens(large) if masked else 0
    demos = [_low_dim_demo(source.read(name, low_dim), tokens, _where(source, name)) for source, name in picked]
    lengths = np.array([len(demo.actions) for demo in demos], dtype=np.int64)
    instructions = tuple(sorted({demo.instruction for demo in demos if demo.instruction is not None}))
    kept = {key: torch.empty((0, *shape), dtype=torch_type(dtype)) for key, (shape, dtype) in large.items()}
    if pool_tokens is not None and TOKENS_KEY in kept:
        kept[TOKENS_KEY] = pool_tokens(kept[TOKENS_KEY], None)
    frame_bytes = sum(rows.shape[1:].numel() * rows.element_size() for rows in kept.values())
    chosen = choose_placement(placement, int(lengths.sum()) * frame_bytes, torch.device(device))
    if chosen == "disk":
        frames = _open_large(picked, lengths, large, threads)
    else:
        room = _room(kept, int(lengths.sum()), device if chosen == "device" else "cpu")
        frames = _load_large(picked, large, room, pool_tokens, masked)
    for file in files:  # otherwise rows of two versions of a file could be mixed
        file.require_unchanged()
    return DemoRows(
        lengths=lengths,
        actions=_stacked([demo.actions for demo in demos], picked, "actions"),
        low_dim={key: _stacked([demo.obs[key] for demo in demos], picked, f"obs/{key}") for key in demos[0].obs},
        large=frames,
        instruction_id=np.array([instructions.index(demo.instruction) if demo.instruction else -1 for demo in demos]),
        instructions=instructions,
        source_id=np.repeat(np.arange(len(sources)), [len(names) for _, names in sources]),
        seeds=tuple(demo.seed for demo in demos if demo.seed is not None),
        placement=chosen,
    )


def _masked_tokens(large: Mapping[str, Row]) -> int:
    """Number of tokens per frame, for demos whose mask of tokens is read.

    Raises:
        DemoFormatError: the mask is read without the tokens.
    """
    if TOKENS_KEY not in large:
        raise DemoFormatError(
            f"the key {TOKEN_VALID_KEY} is the mask of {TOKENS_KEY}, which is not among the keys; name both"
        )
    return large[TOKENS_KEY][0][0]


def row_types(source: DemoReader, name: str) -> dict[str, Row]:
    """Shape and type of one row of each observation key of a demo, including `tokens` if it has any.

    If the format has HDF5 datasets, only their shapes and types are read, except for images that need a conversion: the images
    of one demo may take gigabytes.
    """
    if (datasets := source.datasets(name)) is not None:
        seen = [key for key in datasets if key.startswith("obs/") or key == TOKENS_KEY]
        rows = {key.removeprefix("obs/"): (datasets[key].shape[1:], datasets[key].dtype) for key in seen}
        odd = [key for key, row in rows.items() if key != TOKENS_KEY and image_form(*row) is not None]
        read = source.read(name, odd).obs if odd else {}
        return rows | {key: (values.shape[1:], values.dtype) for key, values in read.items()}
    demo = source.read(name)
    arrays = {**demo.obs, **({} if demo.tokens is None else {TOKENS_KEY: demo.tokens})}
    return {key: (values.shape[1:], values.dtype) for key, values in arrays.items()}


def read_flags(sources: Sequence[tuple[DemoReader, Sequence[str]]], key: str) -> np.ndarray:
    """(rows,) bool, in the order of `load_rows`: True where the key, one number per step, is above 0.5.

    False at all steps of a demo without the key.
    """
    flags = []
    for source, names in sources:
        for name in names:
            demo = source.read(name, [key] if key in row_types(source, name) else [])
            flags.append(np.ravel(demo.obs[key]) > 0.5 if demo.obs else np.zeros(len(demo), bool))
    return np.concatenate(flags)


def _large_row_types(first: tuple[DemoReader, str], keys: Sequence[str]) -> dict[str, Row]:
    """The images and tokens among the keys, each with the shape and type of one row in the first demo."""
    where, rows, large = _where(*first), row_types(*first), {}
    for key in keys:
        if key not in rows:
            what = "no tokens; `robopolicy encode` makes them" if key == TOKENS_KEY else f"no {key}"
            raise DemoFormatError(f"{where}: {what}; it has: {', '.join(rows)}")
        shape, dtype = rows[key]
        if key == TOKENS_KEY or (dtype == np.uint8 and len(shape) == 3):
            large[key] = rows[key]
    return large


def _low_dim_demo(demo: Demo, tokens: int, where: str) -> Demo:
    """The part of a demo that is always kept in memory: actions, low-dimensional observations (T, d, ...), instruction, seed.

    If `tokens`, the number of tokens per step, is not 0, the token mask (T, N) is added to the observations.
    """
    obs = {
        key: np.asarray(values, dtype=np.float32).reshape(len(demo), *(values.shape[1:] or (1,)))
        for key, values in demo.obs.items()
    }
    if tokens:
        obs[TOKEN_VALID_KEY] = np.broadcast_to(_token_valid(demo, tokens, where), (len(demo), tokens))
    return Demo(demo.name, obs, np.asarray(demo.actions, dtype=np.float32), demo.instruction, seed=demo.seed)


def _token_valid(demo: Demo, tokens: int, where: str) -> np.ndarray:
    """(N,) float32: the mask of a demo's tokens; 1 for a valid one, 0 for padding."""
    valid = np.asarray(demo.attributes.get(TOKEN_VALID_KEY, np.ones(tokens)))
    if valid.shape != (tokens,) or not np.isin(valid, (0, 1)).all() or not valid.any():
        raise DemoFormatError(f"{where}: {TOKEN_VALID_KEY} is not a mask of its {tokens} tokens; encode the file again")
    return valid.astype(np.float32)


def _room(kept: Mapping[str, Tensor], steps: int, device: torch.device | str) -> dict[str, Tensor]:
    """Allocate memory for all rows of each key; host memory is pinned if there is a GPU to copy it to."""
    pinned = torch.device(device).type == "cpu" and torch.cuda.is_available()
    return {
        key: torch.empty((steps, *rows.shape[1:]), dtype=rows.dtype, device=device, pin_memory=pinned)
        for key, rows in kept.items()
    }


def _load_large(
    picked: Picked,
    large: Mapping[str, Row],
    loaded: Mapping[str, Tensor],
    pool_tokens: TokenPooling | None,
    masked: bool,
) -> dict[str, Frames]:
    """Fill the tensor of each key, demo by demo; `pool_tokens` gets the tokens' mask only if `masked`."""
    row = 0
    for source, name in picked if large else ():
        where = _where(source, name)
        demo = source.read(name, [key for key in large if key != TOKENS_KEY])
        for key in large:
            values = demo.tokens if key == TOKENS_KEY else demo.obs[key]
            if values is None:
                raise DemoFormatError(f"{where}: no tokens; `robopolicy encode` makes them")
            _require_rows(values.shape, values.dtype, large[key], where, key)
            rows = torch.from_numpy(values)
            if key == TOKENS_KEY and pool_tokens is not None:
                valid = torch.from_numpy(_token_valid(demo, values.shape[1], where)).bool() if masked else None
                rows = pool_tokens(rows, valid)
            loaded[key][row : row + len(demo)] = rows
        row += len(demo)
    return {key: MemoryFrames(values) for key, values in loaded.items()}


def _open_large(picked: Picked, lengths: np.ndarray, large: Mapping[str, Row], threads: int) -> dict[str, Frames]:
    """Key -> access to its rows in the files, which are read for each batch."""
    descriptors: dict[str, Descriptor] = {}
    readers: dict[str, list[RowReader]] = {key: [] for key in large}
    for source, name in picked:
        datasets, where = source.datasets(name), _where(source, name)
        if datasets is None:
            raise DemoFormatError(
                f"{source.path.name}: only the native layout is read from the disk while training; "
                "`robopolicy convert` makes such a file, or set --data.placement host"
            )
        for key, row in large.items():
            path = key if key == TOKENS_KEY else f"obs/{key}"
            if path not in datasets:
                raise DemoFormatError(f"{where}: no {path}; it has: {', '.join(datasets)}")
            if key != TOKENS_KEY and (form := image_form(datasets[path].shape[1:], datasets[path].dtype)) is not None:
                raise DemoFormatError(
                    f"{where}: {key} holds images that are {form}, which can't be converted while training from the disk; "
                    "`robopolicy convert` makes a file of uint8 images, or set --data.placement host"
                )
            _require_rows(datasets[path].shape, datasets[path].dtype, row, where, key)
            inside = datasets[path].file.filename  # tokens may be in a token file beside the demo file
            if inside not in descriptors:
                descriptors[inside] = Descriptor(inside)
            readers[key].append(row_reader(datasets[path], descriptors[inside], f"{where}: {path}"))
    return {key: DiskFrames(found, threads, list(descriptors.values())) for key, found in readers.items()}


def _require_rows(shape: tuple[int, ...], dtype: np.dtype, row: Row, where: str, key: str) -> None:
    if (shape[1:], dtype) != row:
        raise DemoFormatError(
            f"{where}: {key} has rows of {dtype} {shape[1:]} but the first demo has {row[1]} {row[0]}; all need the same"
        )


def _stacked(arrays: Sequence[np.ndarray], picked: Picked, key: str) -> np.ndarray:
    first = (arrays[0].shape[1:], arrays[0].dtype)
    for array, demo in zip(arrays, picked, strict=True):
        _require_rows(array.shape, array.dtype, first, _where(*demo), key)
    return np.concatenate(arrays)


def _where(source: DemoReader, name: str) -> str:
    return f"{source.path.name}, {name}"
