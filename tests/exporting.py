"""Small random policies, exported in a process of their own: tracing does not bear the type checks of pytest.

python -m tests.exporting OUT CASE ...    writes OUT/CASE/run and OUT/CASE/exported for each case

`tests/control/tiny_export` is the export of the case `tiny`, `tests/cli/robot_export` that of `robot`, which moves our arm.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from robopolicy.control.export import export_policy
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, load_policy, save_policy
from robopolicy.model.normalization import Statistics
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec

SMALL = {
    "memory.window": 3,
    "memory.layers": 2,
    "memory.hidden": 16,
    "action_head.chunk": 2,
    "action_head.widths": [8],
}
INTERLEAVED = ActionSpec(arm=(0, 1, 3), gripper=(2,), constant={4: 0.5}, gripper_values=((0.0, 0.08),), rate_hz=20.0)
CASES = {
    "window": ("keys", {}, False),
}
"""Encoder, head, int8."""
ARM = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)
TINY = {
    "tiny": ("keys", {"memory.layers": 1, "memory.hidden": 8}, False),
    "robot": ("keys", {"memory.layers": 1, "memory.hidden": 8, "action_head.chunk": 4}, False),
}
SLOW_CASES = {
    "int8": ("keys", {}, True),
    "int8-transformer": ("keys", {"memory.kind": "transformer", "memory.hidden": 32}, True),
} | {
    f"{kind}-{memory}-{history}-{pooling}-{head}": (
        kind,
        {"memory.kind": memory, "pooling.kind": pooling, "action_head.kind": head}
        | ({"memory.history": history} if history == "carry" else {})
        | ({"pooling.latent": 2} if pooling == "max" else {}),
        False,
    )
    for kind, memory, history, pooling, head in (
        ("pixels", "lstm", "window", "max", "regression"),
        ("pixels", "lstm", "window", "resampler", "gmm"),
        ("pixels", "gru", "carry", "attention", "regression"),
        ("keys", "gru", "window", "mean", "discrete"),
        ("keys", "lstm", "carry", "attention", "gmm"),
        ("keys", "transformer", "window", "max", "regression"),
        ("keys", "lstm", "window", "max", "flow"),
        ("keys", "gru", "carry", "max", "flow"),
        ("keys", "none", "none", "max", "regression"),
        ("precomputed", "lstm", "window", "max", "regression"),
    )
}


def make_policy(
    kind: str = "keys",
    instruction: bool = True,
    action: ActionSpec = INTERLEAVED,
    changes: Mapping[str, object] | None = None,
) -> ChunkPolicy:
    """A policy with random weights that act on scales as a real arm's; one of our arm moves it gently."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    obs = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
    if kind == "pixels":
        obs["front"] = ArraySpec((16, 16, 3), "uint8")
    if kind == "precomputed":
        obs = {"tokens": ArraySpec((5, 16))}
    config = ExperimentConfig().change(
        {"encoder.kind": kind, "encoder.width": 16, "encoder.hidden": 16}
        | ({} if instruction else {"text.kind": "none"})
        | small(changes or {})
        | ({"execution.replan_every": 2} if action == ARM else {})
    )
    low_action, high_action = (-0.2, 0.2) if action == ARM else (-2, 3)
    low = {key: spec for key, spec in obs.items() if not spec.is_image and key != "tokens"}
    facts = DemoFacts(
        action,
        obs,
        Vocabulary.of(["lift the red cube", "lift the blue cube"]),
        obs_statistics={key: Statistics.of(rng.normal(1, 2, size=(50, *spec.shape))) for key, spec in low.items()},
        action_statistics=Statistics.of(rng.uniform(low_action, high_action, size=(50, action.width))),
        provenance={"task": "lift", "control_dt": 0.05},
    )
    return build_policy(config, facts).eval()


def small(changes: Mapping[str, object]) -> dict[str, object]:
    """Small sizes, for those parts that have them, and other changes of the config."""
    sizes = dict(SMALL)
    kind = changes.get("memory.kind", "lstm")
    if kind == "none" or changes.get("memory.history") == "carry":
        del sizes["memory.window"]
    if kind == "none":
        del sizes["memory.layers"]
    return sizes | dict(changes)


def export_case(out: Path, name: str) -> None:
    """The run folder and the export of one case."""
    kind, head, int8 = (CASES | SLOW_CASES | TINY)[name]
    provenance = {"task": "lift", "control_dt": 0.05, "demo_files": ["/home/someone/lift.hdf5"]}
    action = ARM if name == "robot" else INTERLEAVED
    policy, rng = make_policy(kind, action=action, changes=head), np.random.default_rng(1)
    run = save_policy(policy, out / name / "run", provenance)
    frames = [
        {key: rng.normal(1, 2, spec.shape).astype(np.float32) for key, spec in policy.obs.items()}
        | {"instruction": "lift the red cube"}
        for _ in range(512 if int8 else 0)
    ]
    export_policy(load_policy(run), out / name / "exported", int8, frames=frames)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in sys.argv[2:]:
        export_case(Path(sys.argv[1]), case)
