"""The page of one evaluation: success, episode lengths, results by instruction, and videos."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.files import write_file
from robopolicy.report.page import percent, percent_range, success_table, table, write_page
from robopolicy.report.plots import histogram, interval_plot
from robopolicy.report.video import episode_images, side_by_side, write_video


def write_evaluation_report(
    folder: Path, result: Mapping[str, Any], episodes: Sequence[Any] = (), videos: int = 4
) -> Path:
    """Write `report.html` with the figures of one evaluation, and mp4 videos of successes and failures beside it.

    Args:
        folder: folder of the page; created if missing.
        result: `Evaluation.to_dict()`.
        episodes: recorded episodes (`rollout.episodes.Episode`) whose demos hold images.
        videos: number of successes, and of failures, to show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "result.json", json.dumps(dict(result), indent=2))
    provenance = result.get("provenance", {})
    parts = [
        _summary(result),
        _in_a_row(result.get("in_a_row", ())),
        success_table({"solved": result["per_instruction"]}),
        _lengths(result["outcomes"], result["control_dt"]),
        _faults(result.get("faults", {})),
        *_videos(folder, episodes, videos, result["control_dt"]),
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


def _lengths(outcomes: Sequence[Mapping[str, Any]], control_dt: float) -> str:
    failed = [str(outcome["seed"]) for outcome in outcomes if not outcome["success"]]
    lengths = [outcome["steps"] for outcome in outcomes if outcome["success"]]
    plot = ""
    if lengths:
        plot = f"<h2>Length of successful episodes</h2>{histogram(lengths, f'control steps of {control_dt} s')}"
    return f"{plot}<h2>Failed seeds</h2><p>{', '.join(failed) or 'none'}</p>"


def _faults(faults: Mapping[str, Sequence[int]]) -> str:
    """Episodes that failed because of a fault of the simulator."""
    if not faults:
        return ""
    rows = [(fault, len(seeds), ", ".join(map(str, seeds))) for fault, seeds in faults.items()]
    return f"<h2>Simulator faults</h2>{table(('fault', 'episodes', 'seeds'), rows)}"


def _videos(folder: Path, episodes: Iterable[Any], count: int, control_dt: float) -> list[str]:
    parts = []
    filmed = [episode for episode in episodes if _is_filmed(episode)]
    for title, name, expected in (("Successes", "success", True), ("Failures", "failure", False)):
        chosen = sorted((e for e in filmed if e.success == expected), key=lambda e: e.seed)[:count]
        figures = []
        for episode in chosen:
            caption = f"seed {episode.seed}: {episode.instruction}, {episode.steps} steps"
            path = folder / f"{name}_{episode.seed}.mp4"
            figures.append(_video(episode_images(episode), path, caption, control_dt))
        if figures:
            parts.append(f"<h2>{title}</h2>{''.join(figures)}")
    return parts


def _video(images: np.ndarray, path: Path, caption: str, control_dt: float) -> str:
    """A video in real time, written beside the page and embedded in it."""
    data = base64.b64encode(write_video(images, path, 1 / control_dt).read_bytes()).decode()
    video = f"<video controls loop muted autoplay playsinline src='data:video/mp4;base64,{data}'></video>"
    return f"<figure>{video}<figcaption>{html.escape(caption)}</figcaption></figure>"


def write_side_by_side(
    folder: Path, runs: Mapping[str, tuple[Mapping[str, Any], Sequence[Any]]], videos: int = 4
) -> Path:
    """Write `report.html` with several policies on the same seeds, and videos of the same seed beside each other.

    Seeds are grouped by the policies that solved them; those on which the policies differ come first.

    Args:
        folder: folder of the page; created if missing.
        runs: name -> (`Evaluation.to_dict()`, recorded episodes), of one task and the same seeds.
        videos: number of seeds to show of each group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: result for name, (result, _) in runs.items()}
    control_dt = next(iter(results.values()))["control_dt"]
    rows = {}
    for name, each in results.items():
        rate = f"{each['successes']} / {each['episodes']} = {percent(each['success_rate'])}"
        rows[f"{name}: {rate}"] = (each["success_rate"], each["interval"])
    instructions = success_table({name: result["per_instruction"] for name, result in results.items()})
    by_seed = {name: {episode.seed: episode for episode in episodes} for name, (_, episodes) in runs.items()}
    shared = sorted(set.intersection(*(set(found) for found in by_seed.values())))
    kinds: dict[tuple[str, ...], list[int]] = {}
    for seed in shared:
        solved = tuple(name for name, found in by_seed.items() if found[seed].success)
        kinds.setdefault(solved, []).append(seed)
    parts = []
    for solved, seeds in sorted(kinds.items(), key=lambda kind: (len(kind[0]) in (0, len(runs)), kind[0])):
        who = "all" if len(solved) == len(runs) else "none" if not solved else f"{', '.join(solved)} only"
        figures = []
        for seed in seeds[:videos]:
            episodes = [found[seed] for found in by_seed.values()]
            if not all(map(_is_filmed, episodes)):
                continue
            ends = ", ".join(f"{'solved' if e.success else 'failed'} in {e.steps} steps" for e in episodes)
            caption = f"seed {seed}: {episodes[0].instruction}; {ends}"
            images = side_by_side([episode_images(episode) for episode in episodes])
            figures.append(_video(images, folder / f"seed_{seed}.mp4", caption, control_dt))
        parts.append(f"<h2>Solved by {html.escape(who)}: {len(seeds)} seeds</h2>{''.join(figures)}")
    order = f"<p>In each video, from left to right: {html.escape(', '.join(runs))}.</p>" if videos else ""
    title = f"{next(iter(results.values()))['task']}: {len(runs)} policies on the same seeds"
    return write_page(folder / "report.html", title, [interval_plot(rows), instructions, order, *parts])


def _is_filmed(episode: Any) -> bool:
    return any(value.ndim == 4 for demo in episode.demos for value in demo.obs.values())


def _provenance(values: Mapping[str, Any]) -> str:
    text = html.escape(json.dumps(dict(values), indent=2, default=str))
    return f"<h2>How it was made</h2><details><summary>policy, execution, training</summary><pre>{text}</pre></details>"
