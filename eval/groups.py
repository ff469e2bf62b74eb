"""Two robots with different action widths in one training: each one's loss beside that of a training alone.

    python eval/groups.py LIFT.hdf5 PLACE.hdf5 [--steps 400] [--runs runs/groups] [--json FILE]

The second robot is the first without rotations: its demonstrations keep 3 arm columns and the gripper. Batch size, steps,
seed and config are the same in all three trainings; compared is the loss of held-out demonstrations at the end.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_table import bar, show

from robopolicy.demos.formats import open_demos
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.experiment import ExperimentConfig
from robopolicy.training.train import train
from robopolicy.types import ActionSpec

COLUMNS = [0, 1, 2, 6]


def main() -> None:
    """Train three times, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, help="low-dimensional demos of lift and of place, as `collect` writes them")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=Path("runs/groups"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    files = {"seven": options.files[0], "four": str(narrowed(options.files[1], options.runs / "four.hdf5"))}
    groups = {name: {"files": [file]} for name, file in files.items()}
    together = last_losses(options, "together", {"data.groups": groups})
    rows: list[dict[str, Any]] = []
    for name, file in files.items():
        alone = last_losses(options, name, {"data.files": [file]})["loss"]
        ratio = together[f"loss_{name}"] / alone
        rows.append({"robot": name, "alone": alone, "together": together[f"loss_{name}"], "ratio": ratio})
    bars = [bar(f"{row['robot']}: loss together / alone", row["ratio"], 1.1, "lower") for row in rows]
    show(rows, bars, options.json)


def narrowed(source: str, target: Path) -> Path:
    """The demos with 3 arm columns and the gripper."""
    if not target.exists():
        spec = ActionSpec(arm=3, gripper=1, kind="delta", space="ee", rate_hz=20.0)
        with open_demos(source) as demos, DemoWriter(target, action_spec=spec) as writer:
            for name in demos.names:
                demo = demos.read(name)
                writer.write(replace(demo, actions=demo.actions[:, COLUMNS], executed_actions=None))
    return target


def last_losses(options: argparse.Namespace, name: str, data: dict[str, Any]) -> dict[str, float]:
    """Losses of the held-out demos after a training, which is not repeated."""
    run = options.runs / name
    if not (run / "metrics.json").exists():
        changes = {
            "data.obs_keys": ["gripper", "to_cube_red", "to_cube_green", "to_cube_blue"],
            "data.batch_size": 32,
            "data.segment": 8,
            "encoder.width": 64,
            "encoder.hidden": 64,
            "memory.kind": "lstm",
            "memory.window": 4,
            "memory.layers": 1,
            "memory.hidden": 64,
            "action_head.chunk": 4,
            "training.max_steps": options.steps,
            "training.valid_every": options.steps,
            "training.checkpoint_every": options.steps,
            "training.select": "last",
        }
        train(ExperimentConfig().change({**changes, **data}), run)
    return json.loads((run / "metrics.json").read_text())["valid"][-1]


if __name__ == "__main__":
    main()
