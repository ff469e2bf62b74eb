"""Encodes all frames of a demo file once with a frozen vision-language backbone, and writes the tokens.

The tokens are written to a file beside the demos (`robopolicy.demos.tokens`), or together with the demos to a new demo file.
Each demo's tokens are (T, N, D) float16, with the mask `token_valid` (N,): 1 for a real token, 0 for padding, which repeats
the last real token. A policy trained on a file with padded tokens reads `token_valid` as an observation and leaves padding out
when it pools. An interrupted run is resumed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16

from robopolicy.demos.formats import DemoReader, open_demos
from robopolicy.demos.formats.base import is_image
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.rows import row_types
from robopolicy.demos.tokens import IDENTITY, TokenWriter, encoder_described, tokens_beside
from robopolicy.demos.writer import DemoWriter
from robopolicy.model.encoders._backbones import Reading
from robopolicy.model.encoders._loading import Dtype, identity_difference
from robopolicy.model.encoders._tokens import FrameTokens
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, Demo, DemoFormatError


@dataclass(frozen=True)
class EncodeOptions:
    """How a backbone reads the demos."""

    cameras: tuple[str, ...] = ()
    """Cameras that are encoded, in this order; empty: all, sorted by name."""
    template: str = "{instruction}"
    """Template of the prompt; `{instruction}` stands for a demo's instruction."""
    prompt_tokens: int | None = None
    """Tokens per prompt; must be the same in all files of a training; None: as many as this file's instructions need."""
    reading: Reading = field(default_factory=Reading)
    """Which hidden states of the backbone become tokens."""
    dtype: Dtype = "auto"
    """Data type of the backbone's weights."""
    device: str | None = None
    """Device of the backbone; None: the GPU if there is one, else the CPU."""


@dataclass(frozen=True)
class Encoded:
    """Result of `encode_file`."""

    path: Path
    """The file with the tokens."""
    demos: int
    """Number of demos encoded in this call, not counting those of an interrupted earlier run."""
    frames: int
    token_count: int
    token_width: int


def encode_file(
    path: str | Path,
    model: str,
    options: EncodeOptions | None = None,
    *,
    out: str | Path | None = None,
    progress: Any = iter,
) -> Encoded:
    """Encode every frame of a native demo file and write the tokens; the demo file itself is not changed.

    Args:
        path: a file in the native layout; convert other formats first.
        model: local folder or hub name of the backbone.
        options: how the backbone reads the demos.
        out: a new demo file for the demos and their tokens; None: the tokens alone, beside the demo file.
        progress: wraps the iterable of demo names, to show progress.

    Raises:
        DemoFormatError: the file can't be used, or the output file holds tokens of a different encoder.
        FileExistsError: `out` exists.
        ConfigError: the model does not exist, or can't be used with these options.
    """
    path, options = Path(path), options or EncodeOptions()
    with _without_tokens(path) as demos:
        made = _frame_tokens(demos, model, options)
        cameras = tuple(made.image_sizes)
        writer = _sidecar(demos, made.identity) if out is None else _copy(demos, Path(out), made.identity)
        with writer as target:
            encoded = frames = 0
            done = set(target.names)
            for name in progress(demos.names):
                if name in done:
                    continue
                demo = demos.read(name) if out is not None else demos.read(name, cameras)
                tokens, valid = _encode_demo(demo, made, f"{path.name}, {name}")
                if isinstance(target, TokenWriter):
                    target.write(name, tokens, valid)
                else:
                    mask = {TOKEN_VALID_KEY: valid.astype(np.int64)}
                    target.write(replace(demo, tokens=tokens, attributes={**demo.attributes, **mask}))
                encoded, frames = encoded + 1, frames + len(tokens)
    return Encoded(target.path, encoded, frames, *made.shape)


def require_one_encoder(readers: Iterable[DemoReader]) -> dict[str, Any]:
    """Identity of the encoder that made the tokens of all these files; empty if none of them records it.

    Raises:
        DemoFormatError: a file has no tokens, or its encoder differs from that of the first file.
    """
    first: tuple[str, dict[str, Any]] | None = None
    for reader in readers:
        if IDENTITY not in reader.attributes and TOKENS_KEY not in row_types(reader, reader.names[0]):
            raise DemoFormatError(f"{reader.path.name}: no tokens in it or beside it; `robopolicy encode` makes them")
        identity = json.loads(reader.attributes.get(IDENTITY, "{}"))
        first = first or (reader.path.name, identity)
        if difference := identity_difference(identity, first[1]):
            raise DemoFormatError(
                f"{reader.path.name} has tokens of {encoder_described(identity)}, and {first[0]} has tokens of "
                f"{encoder_described(first[1])}: {difference}; encode one of them again with the other's encoder"
            )
    if first is None:
        raise DemoFormatError("no demo files to look for tokens in")
    return first[1]


def _sidecar(demos: DemoFile, identity: dict[str, Any]) -> TokenWriter:
    if demos.has_tokens_inside:
        raise DemoFormatError(
            f"{demos.path.name}: already contains tokens; encode a file without tokens, such as the one it was made from"
        )
    return TokenWriter(tokens_beside(demos.path), identity, {name: demos.mark(name) for name in demos.names})


def _copy(demos: DemoReader, out: Path, identity: dict[str, Any]) -> DemoWriter:
    """A writer of a new file with the attributes of the demo file."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out")
    plain = {key: value for key, value in demos.attributes.items() if isinstance(value, (str, int, float))}
    facts = {**plain, IDENTITY: json.dumps(identity)}
    return DemoWriter(
        out, env_args=demos.attributes.get("env_args"), action_spec=demos.action_spec, attributes=facts, resume=True
    )


def _without_tokens(path: Path) -> DemoFile:
    """A native demo file, opened without the tokens beside it."""
    with open_demos(path) as demos:
        if demos.format_name != DemoFile.format_name:
            raise DemoFormatError(
                f"{path.name}: only files in the native layout can be encoded, and this is {demos.format_name}; "
                "`robopolicy convert` makes a native file"
            )
    return DemoFile(path, tokens=False)


def _frame_tokens(demos: DemoFile, model: str, options: EncodeOptions) -> FrameTokens:
    first = demos.read(demos.names[0])
    images = {key: values.shape[1:] for key, values in first.obs.items() if is_image(values)}
    cameras = options.cameras or tuple(sorted(images))
    if not images:
        raise DemoFormatError(f"{demos.path.name}: no images to encode; it has: {', '.join(first.obs)}")
    if missing := [camera for camera in cameras if camera not in images]:
        raise DemoFormatError(f"{demos.path.name}: no {', '.join(missing)} to encode; cameras: {', '.join(images)}")
    instructions = {demos.read(name, ()).instruction or "" for name in demos.names}
    made = FrameTokens(
        model,
        {camera: (images[camera][0], images[camera][1]) for camera in cameras},
        options.template,
        options.prompt_tokens,
        instructions=sorted(instructions),
        reading=options.reading,
        dtype=options.dtype,
    )
    return made.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _encode_demo(
    demo: Demo, made: FrameTokens, where: str
) -> tuple[Float16[np.ndarray, "time tokens width"], np.ndarray]:
    """Tokens of one demo, and the mask of real tokens, (N,) bool."""
    images = {camera: torch.from_numpy(demo.obs[camera]) for camera in made.image_sizes}
    tokens, valid = made(images, made.prompts([demo.instruction]))
    found = tokens.cpu().numpy()
    if not np.isfinite(found).all():
        raise DemoFormatError(
            f"{where}: a token exceeds the range of float16 (65504); tokens of this backbone can't be stored"
        )
    return found, valid[0].cpu().numpy()
