"""Numbers -> a self-contained HTML page: success with its interval, lengths, instructions, loss curves, videos."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.types import Demo

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d2733}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2rem} .big{font-size:2.6rem;font-weight:650}
table{border-collapse:collapse} td,th{padding:.25rem .8rem;border-bottom:1px solid #dde3ea;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums} .bar{fill:#3566b8} .good{color:#1c7c43} .bad{color:#b3372f}
figure{display:inline-block;margin:.4rem} figcaption{font-size:.8rem;color:#5a6775}
video{border-radius:4px;image-rendering:pixelated}
"""


def write_evaluation_report(
    folder: Path, result: Mapping[str, Any], episodes: Sequence[Any] = (), videos: int = 4, fps: float = 20.0
) -> Path:
    """Write `report.html` with the figures of one evaluation, and mp4 videos of successes and failures beside it.

    Args:
        folder: Made if missing.
        result: `Evaluation.to_dict()`.
        episodes: Recorded episodes (`sim.rollout.Episode`) whose demos hold pictures.
        videos: How many successes and how many failures to show.
        fps: Pictures per second of the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(dict(result), indent=2))
    page = [
        _summary(result),
        _instructions(result["per_instruction"]),
        _lengths(result["outcomes"], result["control_dt"]),
    ]
    page += _videos(folder, episodes, videos, fps)
    page.append(_provenance(result.get("provenance", {})))
    return _write_page(folder / "report.html", f"robopolicy: {result['task']}", page)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page that compares runs: their losses, and every evaluation found as JSON in their folders.

    Raises:
        ValueError: none of the folders holds `metrics.json` or an evaluation.
    """
    rows, curves = [], []
    for run in runs:
        metrics = _read_json(run / "metrics.json")
        evaluations = [(path, _read_json(path)) for path in sorted(run.rglob("*.json")) if path.name != "metrics.json"]
        evaluations = [(path, values) for path, values in evaluations if values and "success_rate" in values]
        rows += [_comparison_row(run, path, values) for path, values in evaluations if "interval" in values]
        if metrics:
            curves.append((str(run), metrics))
    if not rows and not curves:
        raise ValueError(f"no metrics.json and no evaluation in {', '.join(map(str, runs))}; expected run folders")
    head = (
        "<tr><th>run</th><th>evaluation</th><th>task</th><th>success</th><th>95 % interval</th><th>episodes</th></tr>"
    )
    page = [f"<h2>Closed loop</h2><table>{head}{''.join(rows)}</table>"] if rows else []
    page += [f"<h2>{html.escape(name)}</h2>{_curves(metrics)}" for name, metrics in curves]
    out.parent.mkdir(parents=True, exist_ok=True)
    return _write_page(out, "robopolicy: runs compared", page)


def write_video(frames: np.ndarray, path: Path, fps: float = 20.0, scale: int = 4) -> Path:
    """Write pictures (T, height, width, 3) uint8 as mp4 (H.264, plays in a browser) or GIF, by the path's ending.

    Args:
        frames: One camera's pictures, right way up.
        path: Ends in `.mp4` or `.gif`.
        fps: Pictures per second.
        scale: Whole factor by which small pictures are enlarged.
    """
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise ImportError("videos need imageio; install robopolicy[sim]") from error
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    if path.suffix == ".gif":
        imageio.imwrite(path, large, duration=1000 / fps, loop=0)
    else:
        imageio.imwrite(path, large, fps=fps, codec="libx264", macro_block_size=2, ffmpeg_log_level="error")
    return path


def demo_pictures(demo: Demo) -> np.ndarray:
    """All cameras of a demo side by side, (T, height, width, 3) uint8.

    Raises:
        ValueError: the demo holds no pictures.
    """
    pictures = [value for _, value in sorted(demo.obs.items()) if value.ndim == 4 and value.dtype == np.uint8]
    if not pictures:
        raise ValueError(f"{demo.name} holds no pictures; it has {', '.join(sorted(demo.obs))}; collect with --cameras")
    return np.concatenate(pictures, axis=2)


def show_in_rerun(demo: Demo, control_dt: float = 0.05) -> None:
    """Open a demo in the rerun viewer: pictures, low-dimensional observations and actions over time.

    Args:
        demo: What to show.
        control_dt: Seconds of one step.
    """
    try:
        import rerun
    except ImportError as error:
        raise ImportError("the viewer needs rerun; install robopolicy[view]") from error
    rerun.init(f"robopolicy {demo.name}", spawn=True)
    for step in range(len(demo)):
        rerun.set_time("time", duration=step * control_dt)
        rerun.log("actions", rerun.Scalars(demo.actions[step]))
        for key, value in demo.obs.items():
            is_picture = value.ndim == 4
            rerun.log(f"obs/{key}", rerun.Image(value[step]) if is_picture else rerun.Scalars(np.ravel(value[step])))


def _summary(result: Mapping[str, Any]) -> str:
    low, high = result["interval"]
    return (
        f"<p><span class=big>{100 * result['success_rate']:.0f} %</span> &nbsp; {result['successes']} of "
        f"{result['episodes']} episodes, 95 % interval {100 * low:.0f}-{100 * high:.0f} % (Wilson)</p>"
        f"<p>Mean length {result['mean_steps']:.1f} steps of {result['control_dt']} s. "
        f"Inference {result['inference_s']:.1f} s, sim {result['physics_s']:.1f} s, "
        f"{result['env_steps'] / max(result['wall_s'], 1e-9):.0f} env steps/s.</p>"
    )


def _instructions(table: Mapping[str, Sequence[int]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{solved} / {tried}</td><td class=n>{100 * solved / tried:.0f} %</td></tr>"
        for name, (solved, tried) in table.items()
    )
    return f"<h2>By instruction</h2><table>{rows}</table>"


def _lengths(outcomes: Sequence[Mapping[str, Any]], control_dt: float) -> str:
    failed = [str(outcome["seed"]) for outcome in outcomes if not outcome["success"]]
    lengths = [outcome["steps"] for outcome in outcomes if outcome["success"]]
    parts = (
        [f"<h2>Length of successful episodes [steps of {control_dt} s]</h2>", _histogram(lengths)] if lengths else []
    )
    parts.append(f"<p>Failed seeds: {', '.join(failed) or 'none'}</p>")
    return "".join(parts)


def _histogram(values: Sequence[float], bins: int = 30, width: int = 640, height: int = 140) -> str:
    counts, edges = np.histogram(values, bins=bins)
    step = width / bins
    bars = "".join(
        f"<rect class=bar x={i * step:.1f} y={height - height * n / counts.max():.1f} width={step - 1:.1f} "
        f"height={height * n / counts.max():.1f}><title>{edges[i]:.1f} to {edges[i + 1]:.1f}: {n}</title></rect>"
        for i, n in enumerate(counts)
    )
    labels = (
        f"<text x=0 y={height + 15}>{edges[0]:.3g}</text>"
        f"<text x={width} y={height + 15} text-anchor=end>{edges[-1]:.3g}</text>"
    )
    return f"<svg width={width} height={height + 20} font-size=12>{bars}{labels}</svg>"


def _curves(metrics: Mapping[str, Any], width: int = 640, height: int = 180) -> str:
    """Training and validation losses of `metrics.json` over the steps, on a logarithmic axis."""
    plots = []
    rows = {split: metrics.get(split, []) for split in ("train", "valid")}
    series = {
        f"{split} {name}": [(row["step"], row[name]) for row in rows[split] if row.get(name, 0.0) > 0]
        for split in rows
        for name in (rows[split][0] if rows[split] else ())
        if name.startswith("loss")
    }
    for name, points in sorted(series.items()):
        values = np.array(points, dtype=float)
        if len(values) < 2:
            continue
        x = values[:, 0] / values[:, 0].max() * width
        y = np.log10(values[:, 1])
        y = height - (y - y.min()) / max(y.max() - y.min(), 1e-9) * height
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        caption = f"{html.escape(name)}: {values[0, 1]:.4g} to {values[-1, 1]:.4g} over {values[-1, 0]:.0f} steps (log)"
        path = f"<polyline points='{line}' fill=none stroke=#3566b8 />"
        plots.append(
            f"<figure><svg width={width} height={height}>{path}</svg><figcaption>{caption}</figcaption></figure>"
        )
    return "".join(plots)


def _videos(folder: Path, episodes: Iterable[Any], count: int, fps: float) -> list[str]:
    parts = []
    filmed = [episode for episode in episodes if any(_has_pictures(demo) for demo in episode.demos)]
    for title, name, wanted in (("Successes", "success", True), ("Failures", "failure", False)):
        chosen = sorted((e for e in filmed if e.success == wanted), key=lambda e: e.seed)[:count]
        figures = []
        for episode in chosen:
            pictures = np.concatenate([demo_pictures(demo) for demo in episode.demos])
            path = write_video(pictures, folder / f"{name}_{episode.seed}.mp4", fps)
            data = base64.b64encode(path.read_bytes()).decode()
            caption = f"seed {episode.seed}: {html.escape(episode.instruction)}, {episode.steps} steps"
            video = f"<video controls loop muted autoplay width=256 src='data:video/mp4;base64,{data}'></video>"
            figures.append(f"<figure>{video}<figcaption>{caption}</figcaption></figure>")
        if figures:
            parts.append(f"<h2>{title}</h2>{''.join(figures)}")
    return parts


def _has_pictures(demo: Demo) -> bool:
    return any(value.ndim == 4 for value in demo.obs.values())


def _provenance(values: Mapping[str, Any]) -> str:
    text = html.escape(json.dumps(dict(values), indent=2, default=str))
    return f"<h2>How it was made</h2><details><summary>policy, execution, training</summary><pre>{text}</pre></details>"


def _comparison_row(run: Path, path: Path, values: Mapping[str, Any]) -> str:
    low, high = values["interval"]
    return (
        f"<tr><td>{html.escape(str(run))}</td><td>{html.escape(path.name)}</td>"
        f"<td>{html.escape(str(values.get('task', '')))}</td>"
        f"<td class=n>{100 * values['success_rate']:.1f} %</td><td class=n>{100 * low:.0f}-{100 * high:.0f} %</td>"
        f"<td class=n>{values['episodes']}</td></tr>"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    path.write_text(f"{page}<h1>{html.escape(title)}</h1>{''.join(parts)}</html>")
    return path
