"""Runs a frozen vision-language backbone over all frames of a demo file once, and writes its tokens.

They go to a file beside the demos (`robopolicy.demos.tokens`), or, with the demos, to a new demo file. The tokens of each
demo are (T, N, D) float16, with the mask `token_valid` (N): 0 where a token is padding, which repeats the last real one. A
policy trained on a file with padded tokens pools without them: `token_valid` is then one of its observations. A run that
was interrupted resumes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16
from rich.console import Console
from rich.progress import track

from robopolicy.demos.formats import DemoReader, open_demos
from robopolicy.demos.formats.base import is_image
from robopolicy.demos.formats.robomimic import RobomimicReader
from robopolicy.demos.hdf5 import TOKENS_PADDED, DemoFile
from robopolicy.demos.rows import row_types
from robopolicy.demos.tokens import IDENTITY, TOKEN_VALID, TOKENS, TokenWriter, encoder_described, tokens_beside
from robopolicy.demos.writer import DemoWriter
from robopolicy.model.encoders._backbones import Backbone
from robopolicy.model.encoders._loading import backbone_identity, load_backbone
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.model.texts.prompt import PromptOptions, PromptText
from robopolicy.types import Demo, DemoFormatError

BATCH_FRAMES = 32


@dataclass(frozen=True)
class Encoded:
    """What `encode_file` did."""

    path: Path
    """The file with the tokens."""
    demos: int
    """Demos encoded now; those that an earlier run encoded are kept."""
    frames: int
    token_count: int
    token_width: int


def run_encode(
    path: str | Path,
    model: str,
    cameras: Sequence[str] | None = None,
    template: str = "{instruction}",
    out: str | Path | None = None,
    console: Console | None = None,
) -> int:
    """Encode with a progress bar on a terminal, and print what was done; returns the exit code.

    Raises:
        DemoFormatError, ValueError: as `encode_file`.
    """
    console = console or Console(soft_wrap=True)
    bar = (lambda names: track(names, description="encoding", transient=True)) if console.is_terminal else iter
    done = encode_file(path, model, cameras=cameras, template=template, out=out, progress=bar)
    console.print(f"encoded   {done.demos} demos, {done.frames} frames", highlight=False)
    console.print(f"tokens    {done.token_count} of width {done.token_width} a frame, float16", highlight=False)
    console.print(f"written   {done.path}", markup=False, highlight=False)
    return 0


def encode_file(
    path: str | Path,
    model: str,
    *,
    cameras: Sequence[str] | None = None,
    template: str = "{instruction}",
    out: str | Path | None = None,
    batch_frames: int = BATCH_FRAMES,
    device: str | torch.device | None = None,
    progress: Any = iter,
) -> Encoded:
    """Write the backbone's tokens of every frame of a native demo file, which itself is not changed.

    Args:
        path: a file in the native layout; other formats are converted first.
        model: local folder or hub name of the backbone.
        cameras: the cameras it sees, in this order; None: all, sorted.
        template: how a demo's instruction is put to the backbone.
        out: a new demo file for the demos and their tokens; None: the tokens alone, beside the demo file.
        batch_frames: frames encoded together.
        device: where the backbone runs; None: the GPU where there is one.
        progress: wraps the demos' names.

    Raises:
        DemoFormatError: the file can't be used, or the target holds tokens of another encoder.
        FileExistsError: `out` exists.
        ValueError: there is no such model.
    """
    path = Path(path)
    with _without_tokens(path) as demos:
        first = demos.read(demos.names[0])
        images = {key: values.shape[1:] for key, values in first.obs.items() if is_image(values)}
        chosen = list(cameras) if cameras is not None else sorted(images)
        if missing := [camera for camera in chosen if camera not in images] or ([] if chosen else ["a camera"]):
            raise DemoFormatError(
                f"{path.name}: no {', '.join(missing)} to encode; cameras: {', '.join(images) or 'none'}"
            )
        identity = {**backbone_identity(model), "cameras": chosen, "template": template}
        writer = _sidecar(path, identity) if out is None else _copy(demos, Path(out), identity)
        with writer as target:
            height, width, _ = images[chosen[0]]
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            backbone = load_backbone(model, (height, width)).to(device)
            instructions = [demos.read(name, ()).instruction for name in demos.names]
            vocabulary = Vocabulary.of(text for text in instructions if text is not None)
            text = PromptText(PromptOptions(template), TextInputs(vocabulary, 0, model))
            encoded = frames = 0
            done = set(target.names)
            for name in progress(demos.names):
                if name in done:
                    continue
                demo = demos.read(name) if out is not None else demos.read(name, chosen)
                tokens, valid = _encode_demo(demo, chosen, backbone, text, batch_frames, f"{path.name}, {name}")
                if isinstance(target, TokenWriter):
                    target.write(name, tokens, valid)
                else:
                    mask = {TOKEN_VALID: valid.astype(np.int64)}
                    target.write(replace(demo, tokens=tokens, attributes={**demo.attributes, **mask}))
                encoded, frames = encoded + 1, frames + len(tokens)
    count = backbone.token_count(len(chosen), text.token_count)
    return Encoded(target.path, encoded, frames, count, backbone.token_width)


def require_one_encoder(readers: Iterable[DemoReader]) -> dict[str, Any]:
    """Which encoder made the tokens of all these files; empty where none of them says.

    Raises:
        DemoFormatError: a file has no tokens, or those of another encoder than the first.
    """
    first: tuple[str, dict[str, Any]] | None = None
    for reader in readers:
        if IDENTITY not in reader.attributes and TOKENS not in row_types(reader, reader.names[0]):
            raise DemoFormatError(f"{reader.path.name}: no tokens in it or beside it; `robopolicy encode` makes them")
        identity = json.loads(reader.attributes.get(IDENTITY, "{}"))
        first = first or (reader.path.name, identity)
        if identity != first[1]:
            raise DemoFormatError(
                f"{reader.path.name}: tokens of {encoder_described(identity)}, those of {first[0]} are of "
                f"{encoder_described(first[1])}; encode one of them again"
            )
    if first is None:
        raise DemoFormatError("no demo files to look for tokens in")
    return first[1]


def are_padded(readers: Iterable[DemoReader]) -> bool:
    """Whether some of the files' tokens are padding."""
    return any(reader.attributes.get(TOKENS_PADDED, False) for reader in readers)


def _sidecar(path: Path, identity: dict[str, Any]) -> TokenWriter:
    with DemoFile(path, tokens=False) as file:
        if file.has_tokens_inside:
            raise DemoFormatError(
                f"{path.name}: has tokens in it; encode a file without, such as the one it was made of"
            )
        marks = {name: file.mark(name) for name in file.names}
    return TokenWriter(tokens_beside(path), identity, marks)


def _copy(demos: DemoReader, out: Path, identity: dict[str, Any]) -> DemoWriter:
    """A writer of a file that says of itself what the demos' own says."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out")
    plain = {key: value for key, value in demos.attributes.items() if isinstance(value, (str, int, float))}
    facts = {**plain, IDENTITY: json.dumps(identity)}
    return DemoWriter(
        out, env_args=demos.attributes.get("env_args"), action_spec=demos.action_spec, attributes=facts, resume=True
    )


def _without_tokens(path: Path) -> RobomimicReader:
    with open_demos(path) as demos:
        if demos.format_name != RobomimicReader.format_name:
            raise DemoFormatError(
                f"{path.name}: tokens are made of the native layout only and this is {demos.format_name}; "
                "`robopolicy convert` makes a native file"
            )
    return RobomimicReader(path, tokens=False)


def _encode_demo(
    demo: Demo, cameras: Sequence[str], backbone: Backbone, text: PromptText, batch_frames: int, where: str
) -> tuple[Float16[np.ndarray, "time tokens width"], np.ndarray]:
    """Tokens of one demo, and which of them are real, (N,) bool."""
    device = next(backbone.parameters()).device
    prompt = text.prepare([demo.instruction]).to(device)
    parts = []
    valid = torch.ones(0, dtype=torch.bool)
    for start in range(0, len(demo), batch_frames):
        batch = [torch.from_numpy(demo.obs[camera][start : start + batch_frames]).to(device) for camera in cameras]
        tokens, kept = backbone(batch, prompt.expand(len(batch[0]), -1))
        valid = kept[0]
        last = int(valid.nonzero()[-1])
        tokens = tokens.where(valid[:, None], tokens[:, last : last + 1])
        parts.append(tokens.half().cpu().numpy())
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise DemoFormatError(
            f"{where}: a token is beyond what float16 holds (65504); this backbone can't be precomputed"
        )
    return found, valid.cpu().numpy()
