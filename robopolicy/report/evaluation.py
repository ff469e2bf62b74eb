"""The page of one evaluation: success, episode lengths, results by instruction, and videos."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.files import write_file
from robopolicy.report.page import percent, percent_range, table, write_page
from robopolicy.report.plots import histogram
from robopolicy.report.video import demo_images, write_video
from robopolicy.types import Demo


def write_evaluation_report(
    folder: Path, result: Mapping[str, Any], episodes: Sequence[Any] = (), videos: int = 4, fps: float = 20.0
) -> Path:
    """Write `report.html` with the figures of one evaluation, and mp4 videos of successes and failures beside it.

    Args:
        folder: Made if missing.
        result: `Evaluation.to_dict()`.
        episodes: Recorded episodes (`rollout.episodes.Episode`) whose demos hold images.
        videos: How many successes and how many failures to show.
        fps: images per second of the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "result.json", json.dumps(dict(result), indent=2))
    provenance = result.get("provenance", {})
    parts = [
        _summary(result),
        _in_a_row(result.get("in_a_row", ())),
        _instructions(result["per_instruction"]),
        _lengths(result["outcomes"], result["control_dt"]),
        _faults(result.get("faults", {})),
        *_videos(folder, episodes, videos, fps),
        _provenance(provenance),
    ]
    whose = f": {provenance['policy']}" if "policy" in provenance else ""
    return write_page(folder / "report.html", f"{result['task']}{whose}", parts)


def _summary(result: Mapping[str, Any]) -> str:
    seeds = [outcome["seed"] for outcome in result["outcomes"]]
    return (
        f"<p><span class=big>{percent(result['success_rate'])}</span> &nbsp; {result['successes']} of "
        f"{result['episodes']} episodes, 95 % interval {percent_range(result['interval'])} (Wilson)</p>"
        f"<p>Seeds {min(seeds)} to {max(seeds)}. Mean length {result['mean_steps']:.1f} steps of {result['control_dt']} s. "
        f"Inference {result['inference_s']:.1f} s, sim {result['physics_s']:.1f} s, "
        f"{result['env_steps'] / max(result['wall_s'], 1e-9):.0f} env steps/s.</p>"
    )


def _in_a_row(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    head = [*(f"{count} or more" for count in range(1, len(shares) + 1)), "on average"]
    row = [*map(percent, shares), f"{sum(shares):.2f}"]
    return f"<h2>Instructions solved in a row</h2>{table(head, [row], numbers_from=0)}"


def _instructions(tried: Mapping[str, Sequence[int]]) -> str:
    rows = [(name, f"{solved} / {count}", percent(solved / count)) for name, (solved, count) in tried.items()]
    return f"<h2>By instruction</h2>{table(('instruction', 'solved', 'success'), rows)}"


def _lengths(outcomes: Sequence[Mapping[str, Any]], control_dt: float) -> str:
    failed = [str(outcome["seed"]) for outcome in outcomes if not outcome["success"]]
    lengths = [outcome["steps"] for outcome in outcomes if outcome["success"]]
    plot = ""
    if lengths:
        plot = f"<h2>Length of successful episodes</h2>{histogram(lengths, f'control steps of {control_dt} s')}"
    return f"{plot}<h2>Failed seeds</h2><p>{', '.join(failed) or 'none'}</p>"


def _faults(faults: Mapping[str, Sequence[int]]) -> str:
    """Episodes that failed because the simulator broke, whatever the policy did."""
    if not faults:
        return ""
    rows = [(fault, len(seeds), ", ".join(map(str, seeds))) for fault, seeds in faults.items()]
    return f"<h2>The simulator broke</h2>{table(('fault', 'episodes', 'seeds'), rows)}"


def _videos(folder: Path, episodes: Iterable[Any], count: int, fps: float) -> list[str]:
    parts = []
    filmed = [episode for episode in episodes if any(_has_images(demo) for demo in episode.demos)]
    for title, name, wanted in (("Successes", "success", True), ("Failures", "failure", False)):
        chosen = sorted((e for e in filmed if e.success == wanted), key=lambda e: e.seed)[:count]
        figures = []
        for episode in chosen:
            images = np.concatenate([demo_images(demo) for demo in episode.demos])
            path = write_video(images, folder / f"{name}_{episode.seed}.mp4", fps)
            data = base64.b64encode(path.read_bytes()).decode()
            caption = f"seed {episode.seed}: {html.escape(episode.instruction)}, {episode.steps} steps"
            video = f"<video controls loop muted autoplay height=256 src='data:video/mp4;base64,{data}'></video>"
            figures.append(f"<figure>{video}<figcaption>{caption}</figcaption></figure>")
        if figures:
            parts.append(f"<h2>{title}</h2>{''.join(figures)}")
    return parts


def _has_images(demo: Demo) -> bool:
    return any(value.ndim == 4 for value in demo.obs.values())


def _provenance(values: Mapping[str, Any]) -> str:
    text = html.escape(json.dumps(dict(values), indent=2, default=str))
    return f"<h2>How it was made</h2><details><summary>policy, execution, training</summary><pre>{text}</pre></details>"
