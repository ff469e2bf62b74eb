"""Runs a frozen vision-language backbone over all frames of a demo file once, and writes its tokens beside the demos.

Each demo gains the dataset `tokens` (T, N, D) float16 and the attribute `token_valid` (N): 0 where a token is padding, which
repeats the last real one. A file in which some are says so (`tokens_padded`), and a policy trained on it pools without
them: `token_valid` is then one of its observations. The file says which backbone made the tokens (`token_encoder`), and
takes those of one only. A demo is complete or absent at any moment; a second run goes on where the first ended.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float16
from rich.console import Console
from rich.progress import track

from robopolicy.demos.formats import DemoReader, open_demos
from robopolicy.demos.formats.base import is_image
from robopolicy.demos.guarded import dataset_in, group_in
from robopolicy.demos.journal import JournaledFile
from robopolicy.demos.packing import write_rows
from robopolicy.demos.rows import TOKEN_VALID_KEY
from robopolicy.model.encoders.backbones import Backbone
from robopolicy.model.encoders.loading import backbone_identity, load_backbone
from robopolicy.model.encoders.transformers import PromptText
from robopolicy.types import DemoFormatError

IDENTITY = "token_encoder"
"""Attribute of the file: JSON, which backbone made the tokens, from which cameras, with which template."""
PADDED = "tokens_padded"
"""Attribute of the file: whether some of its tokens are padding."""
BATCH_FRAMES = 32


@dataclass(frozen=True)
class Encoded:
    """What `encode_file` did."""

    demos: int
    """Demos that gained tokens; those that had them already are left as they are."""
    frames: int
    token_count: int
    token_width: int


def run_encode(
    path: str | Path,
    model: str,
    cameras: Sequence[str] | None = None,
    template: str = "{instruction}",
    console: Console | None = None,
) -> int:
    """Encode with a progress bar on a terminal, and print what was done; gives the exit code.

    Raises:
        DemoFormatError, ValueError: as `encode_file`.
    """
    console = console or Console(soft_wrap=True)
    bar = (lambda names: track(names, description="encoding", transient=True)) if console.is_terminal else iter
    done = encode_file(path, model, cameras=cameras, template=template, progress=bar)
    console.print(f"encoded   {done.demos} demos, {done.frames} frames", highlight=False)
    console.print(f"tokens    {done.token_count} of width {done.token_width} a frame, float16", highlight=False)
    console.print(f"written   {path}", markup=False, highlight=False)
    return 0


def encode_file(
    path: str | Path,
    model: str,
    *,
    cameras: Sequence[str] | None = None,
    template: str = "{instruction}",
    batch_frames: int = BATCH_FRAMES,
    device: str | torch.device | None = None,
    progress: Any = iter,
) -> Encoded:
    """Write the backbone's tokens of every frame into a native demo file.

    Args:
        path: a file in the native layout; other formats are converted first.
        model: local folder or hub name of the backbone.
        cameras: which pictures it sees, in this order; None: all, sorted.
        template: how a demo's instruction is put to the backbone.
        batch_frames: frames encoded together.
        device: where the backbone runs; None: the GPU where there is one.
        progress: wraps the demos' names.

    Raises:
        DemoFormatError: the file can't be used, or holds tokens of another encoder.
        ValueError: there is no such model.
    """
    path = Path(path)
    names, pictures = _names_and_cameras(path)
    chosen = list(cameras) if cameras is not None else sorted(pictures)
    if missing := [camera for camera in chosen if camera not in pictures] or ([] if chosen else ["a camera"]):
        raise DemoFormatError(
            f"{path.name}: no {', '.join(missing)} to encode; cameras: {', '.join(pictures) or 'none'}"
        )
    identity = {**backbone_identity(model), "cameras": chosen, "template": template}
    height, width, _ = pictures[chosen[0]]
    backbone = load_backbone(model, (height, width)).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    text = PromptText(model, template)
    count = backbone.token_count(len(chosen), text.token_count)
    demos = frames = 0
    with _open_for_tokens(path, identity) as (data, commit):
        for name in progress(names):
            group = group_in(data, name, path.name)
            if "tokens" in group:
                continue
            tokens, valid = _encode_demo(group, chosen, backbone, text, batch_frames, f"{path.name}, {name}")
            write_rows(group, "tokens", tokens)
            group.attrs[TOKEN_VALID_KEY] = valid.astype(np.uint8)
            if not valid.all():
                data.attrs[PADDED] = True
            commit()
            demos, frames = demos + 1, frames + len(tokens)
    return Encoded(demos, frames, count, backbone.token_width)


def require_one_encoder(readers: Iterable[DemoReader]) -> dict[str, Any]:
    """Which encoder made the tokens of all these files.

    Raises:
        DemoFormatError: a file has no tokens, or those of another encoder than the first.
    """
    first: tuple[str, dict[str, Any]] | None = None
    for reader in readers:
        if IDENTITY not in reader.attributes:
            raise DemoFormatError(f"{reader.path.name}: no tokens in it; `robopolicy encode` writes them")
        identity = json.loads(reader.attributes[IDENTITY])
        first = first or (reader.path.name, identity)
        if identity != first[1]:
            raise DemoFormatError(
                f"{reader.path.name}: tokens of {_described(identity)}, those of {first[0]} are of "
                f"{_described(first[1])}; encode one of them anew"
            )
    if first is None:
        raise DemoFormatError("no demo files to look for tokens in")
    return first[1]


def are_padded(readers: Iterable[DemoReader]) -> bool:
    """Whether some of the files' tokens are padding; one that doesn't say has none."""
    return any(reader.attributes.get(PADDED, False) for reader in readers)


@contextmanager
def _open_for_tokens(path: Path, identity: dict[str, Any]) -> Iterator[tuple[h5py.Group, Any]]:
    """The group `data` and a function that makes what was written durable; the file's identity is checked, then set."""
    raw = JournaledFile(path)
    try:
        with h5py.File(raw, "r+") as file:
            data = group_in(file, "data", path.name)
            found = data.attrs.get(IDENTITY)
            if found is not None and json.loads(found) != identity:
                raise DemoFormatError(
                    f"{path.name}: holds tokens of {_described(json.loads(found))}, not of {_described(identity)}; "
                    "encode a copy of the file that has none"
                )
            data.attrs[IDENTITY] = json.dumps(identity)

            def commit() -> None:
                file.flush()
                raw.commit()

            yield data, commit
        raw.commit()
    finally:
        raw.close()


def _names_and_cameras(path: Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The demos of a native file, and height, width and channels of each camera."""
    with open_demos(path) as demos:
        if demos.format_name != "robomimic":
            raise DemoFormatError(
                f"{path.name}: tokens are written into the native layout only and this is {demos.format_name}; "
                "`robopolicy convert` makes a native file"
            )
        first = demos.read(demos.names[0])
        return list(demos.names), {key: values.shape[1:] for key, values in first.obs.items() if is_image(values)}


def _encode_demo(
    group: h5py.Group, cameras: Sequence[str], backbone: Backbone, text: PromptText, batch_frames: int, where: str
) -> tuple[Float16[np.ndarray, "time tokens width"], np.ndarray]:
    """Tokens of one demo, and which of them are real, (N,) bool."""
    obs = group_in(group, "obs", where)
    images = [dataset_in(obs, camera, where) for camera in cameras]
    device = next(backbone.parameters()).device
    prompt = text.prepare([group.attrs.get("instruction")]).to(device)
    parts = []
    valid = torch.ones(0, dtype=torch.bool)
    for start in range(0, len(images[0]), batch_frames):
        batch = [torch.from_numpy(camera[start : start + batch_frames]).to(device) for camera in images]
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


def _described(identity: dict[str, Any]) -> str:
    return f"{identity.get('model')} ({identity.get('weights')}) on {', '.join(identity.get('cameras', []))}"
