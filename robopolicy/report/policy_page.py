"""A page about one policy on one demo: attention maps over the images, and predicted chunks beside the demonstrated actions."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robopolicy.model.policy import ChunkPolicy
from robopolicy.report.page import image_figure, table, write_page
from robopolicy.report.plots import COLORS, Series, line_plot
from robopolicy.types import TOKENS_KEY, Demo, Policy

SHOWN = 6
"""Number of frames with maps; each plot shows up to twice as many chunks."""
CELLS = 8
"""Rows and columns of the occlusion grid, whose squares are covered one at a time."""
GLOW = np.array([255.0, 150.0, 30.0])
"""Color of highlighted regions (red, green, blue)."""


@dataclass(frozen=True)
class DemoOutputs:
    """A policy's outputs on one demo."""

    steps: np.ndarray
    """(frames,) int, steps of the demo whose frames the policy read."""
    chunks: np.ndarray
    """(frames, K, width), the actions predicted from each of them, in the demos' units."""
    maps: Mapping[str, Mapping[int, np.ndarray]]
    """Camera -> step -> (rows, columns), influence of each place on the prediction, 0 to 1."""
    by_attention: bool
    """True: maps of the encoder's own attention; False: occlusion maps, the change of the chunk when a square is covered."""
    tokens: Mapping[int, np.ndarray]
    """Step -> (N,), change of the chunk when each of the demo's tokens is masked out, divided by the largest change at that
    step; empty for a policy that reads no tokens."""


def write_policy_page(policy: Policy, demo: Demo, out: Path, title: str) -> Path:
    """Write one HTML page: maps over the images, and each action column as predicted and as demonstrated.

    Args:
        policy: the policy; it reads the demo's observations, not its actions.
        demo: a demo with the keys that the policy reads.
        out: path of the page.
        title: title of the page.

    Raises:
        KeyError, ValueError: a key that the policy reads is missing or has the wrong shape.
    """
    seen = look(policy, demo)
    return write_page(
        out,
        title,
        [_instruction(demo), _maps(demo, seen), _tokens(seen), _errors(demo, seen), _chunks(policy, demo, seen)],
    )


@torch.no_grad()
def look(policy: Policy, demo: Demo) -> DemoOutputs:
    """Run a policy over the observations of a demo."""
    stride = policy.spec.frame_stride
    steps = np.arange(0, len(demo), stride)
    drawn = {int(step) for step in steps[np.linspace(0, len(steps) - 1, min(SHOWN, len(steps))).astype(int)]}
    state, chunks = policy.initial_state(1), []
    maps: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in policy.spec.cameras}
    by_attention, tokens = True, dict[int, np.ndarray]()
    rows = {**demo.obs, **({} if demo.tokens is None else {"tokens": demo.tokens})}
    for step in steps:
        frame: dict[str, Any] = {
            key: values[step : step + 1] for key, values in rows.items() if key in policy.spec.observation
        }
        frame["instruction"] = demo.instruction
        before = state
        actions, state = policy.act(frame, state)
        chunks.append(_array(actions)[0])
        if step in drawn and maps:
            found = _attention(policy, frame)
            by_attention = bool(found)
            for camera, each in (found or _occlusion(policy, frame, before, chunks[-1])).items():
                maps[camera][int(step)] = each / max(float(each.max()), 1e-9)
        if step in drawn and TOKENS_KEY in frame and isinstance(policy, ChunkPolicy):
            tokens[int(step)] = _left_out(policy, frame, before, chunks[-1])
    return DemoOutputs(steps, np.stack(chunks), maps, by_attention, tokens)


def _attention(policy: Policy, frame: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The encoder's own attention maps; empty if it has none."""
    if not isinstance(policy, ChunkPolicy):
        return {}
    obs = {key: torch.as_tensor(frame[key], device=policy.device) for key in policy.obs}
    text = policy.instruction_text(frame["instruction"], (1,))
    text_tokens = policy.text(text) if policy.text is not None and text is not None else None
    maps = policy.encoder.attention(policy.scaling(obs), text_tokens)
    return {camera: _array(each)[0] for camera, each in maps.items()}


def _left_out(policy: ChunkPolicy, frame: Mapping[str, Any], state: Any, chunk: np.ndarray) -> np.ndarray:
    """(N,) change of the chunk when each of the demo's tokens is masked out, scaled so that the largest is 1."""
    obs = {key: torch.as_tensor(frame[key], device=policy.device) for key in policy.obs}
    encoding = policy.encode(obs, policy.instruction_text(frame["instruction"], (1,)))
    count = frame[TOKENS_KEY].shape[-2]  # an encoder appends its own tokens after these
    valid = encoding.token_valid
    if valid is None:
        valid = torch.ones(encoding.tokens.shape[:-1], dtype=torch.bool, device=policy.device)
    without = valid.repeat(count, 1)
    without[range(count), range(count)] = False
    encoding = encoding._replace(tokens=encoding.tokens.expand(count, -1, -1), token_valid=without)
    moved, _ = policy.step(encoding, type(state).concat([state] * count))
    spread = np.maximum(np.abs(chunk).max(axis=0), 1e-6)
    found = np.abs((_array(moved.actions) - chunk) / spread).mean(axis=(1, 2))
    return found / max(float(found.max()), 1e-9)


def _occlusion(policy: Policy, frame: Mapping[str, Any], state: Any, chunk: np.ndarray) -> dict[str, np.ndarray]:
    """For each camera, the change of the chunk when one square after another is filled with the image's mean color."""
    spread = np.maximum(np.abs(chunk).max(axis=0), 1e-6)
    many = {key: np.repeat(value, CELLS**2, axis=0) for key, value in frame.items() if key != "instruction"}
    states, found = type(state).concat([state] * CELLS**2), {}
    for camera in policy.spec.cameras:
        covered = many[camera].copy()
        height, width = covered.shape[1:3]
        for place in range(CELLS**2):
            row, column = divmod(place, CELLS)
            area = (slice(row * height // CELLS, (row + 1) * height // CELLS),)
            area += (slice(column * width // CELLS, (column + 1) * width // CELLS),)
            covered[(place, *area)] = covered[place].mean(axis=(0, 1)).astype(np.uint8)
        actions, _ = policy.act({**many, camera: covered, "instruction": frame["instruction"]}, states)
        found[camera] = np.abs((_array(actions) - chunk) / spread).mean(axis=(1, 2)).reshape(CELLS, CELLS)
    return found


# -- the page --------------------------------------------------------------------------------------------------------------


def _instruction(demo: Demo) -> str:
    said = f": &ldquo;{html.escape(demo.instruction)}&rdquo;" if demo.instruction else ""
    return f"<p>{html.escape(demo.name)}, {len(demo)} steps{said}</p>"


def _maps(demo: Demo, seen: DemoOutputs) -> str:
    if not seen.maps:
        return ""
    how = (
        "the encoder's attention, or where its keypoints are"
        if seen.by_attention
        else "how far the predicted chunk moves when that part of the image is covered"
    )
    parts = [f"<h2>Where it looks</h2><p>Bright: {how}.</p>"]
    for camera, frames in seen.maps.items():
        parts.append(f"<h3>{html.escape(camera)}</h3>")
        for step, weights in frames.items():
            parts.append(image_figure(glowing(demo.obs[camera][step], weights), f"{camera}, step {step}", width=224))
    return "".join(parts)


def _tokens(seen: DemoOutputs) -> str:
    """One row per drawn frame, one column per token."""
    if not seen.tokens:
        return ""
    steps, weights = list(seen.tokens), np.stack(list(seen.tokens.values()))
    side = max(1, 512 // weights.shape[1])
    shown = np.kron(np.sqrt(weights)[..., None] * GLOW, np.ones((16, side, 1))).astype(np.uint8)
    text = f"steps {', '.join(map(str, steps))}, from top to bottom; {weights.shape[1]} tokens from left to right"
    how = "how far the predicted chunk moves when that token is left out"
    return f"<h2>Which tokens it reads</h2><p>Bright: {how}.</p>{image_figure(shown, text, width=512)}"


def glowing(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Image (height, width, channels) uint8, dim gray where `weights` (rows, columns) are low, tinted color where high."""
    height, width = image.shape[:2]
    rows = np.arange(height) * weights.shape[0] // height
    columns = np.arange(width) * weights.shape[1] // width
    amount = np.sqrt(weights[rows][:, columns, None])  # the root makes places with a lower weight visible
    colored = np.broadcast_to(image[..., :3], (height, width, 3)).astype(float)
    gray = 0.55 * colored.mean(axis=-1, keepdims=True)
    lit = 0.65 * colored + 0.35 * GLOW
    return (gray + amount * (lit - gray)).clip(0, 255).astype(np.uint8)


def _errors(demo: Demo, seen: DemoOutputs) -> str:
    """Table by action column: mean absolute error of the first action and of the chunk, standard deviation of the demo."""
    ahead = seen.chunks.shape[1]
    expected = np.full((len(seen.steps), ahead, demo.actions.shape[1]), np.nan)
    for place, step in enumerate(seen.steps):
        rows = demo.actions[step : step + ahead]
        expected[place, : len(rows)] = rows
    errors = np.abs(seen.chunks - expected)
    rows = [
        (column, f"{np.nanmean(errors[:, 0, column]):.3g}", f"{np.nanmean(errors[..., column]):.3g}", f"{spread:.3g}")
        for column, spread in enumerate(demo.actions.std(axis=0))
    ]
    head = ("action column", "error of the first action", f"of all {ahead}", "standard deviation of the demo")
    return f"<h2>Predicted against demonstrated</h2>{table(head, rows)}"


def _chunks(policy: Policy, demo: Demo, seen: DemoOutputs) -> str:
    """A plot of each column: the demo's actions, and predicted chunks at the steps where they would be executed."""
    every = max(1, -(-len(seen.steps) // (2 * SHOWN)))
    spec, plots = policy.spec.action, []
    for column in range(demo.actions.shape[1]):
        points = [(float(step), float(value)) for step, value in enumerate(demo.actions[:, column])]
        series = [Series("", points, "var(--faint)")]
        for place in range(0, len(seen.steps), every):
            values = seen.chunks[place, : len(demo) - seen.steps[place], column]
            points = [(float(seen.steps[place] + ahead), float(value)) for ahead, value in enumerate(values)]
            series.append(Series("", points, COLORS[1]))
        kind = "gripper" if column in (*spec.gripper_columns, *spec.continuous_gripper) else "arm"
        plots.append(line_plot(series, f"column {column} ({kind}) by step of the demo", False, width=270, height=110))
    legend = (
        "<p><span style='color:var(--faint)'>&mdash; demonstrated</span> &nbsp; "
        f"<span style='color:{COLORS[1]}'>&mdash; chunks, predicted from the frames at which they begin</span></p>"
    )
    return legend + "".join(plots)


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
