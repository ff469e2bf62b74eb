"""A RoboVLMs checkpoint -> a run folder."""

from pathlib import Path
from typing import Literal

from robopolicy.components import component
from robopolicy.experiment.building import DemoFacts, build_policy
from robopolicy.experiment.config import DataConfig, ExperimentConfig
from robopolicy.experiment.run_folder import save_policy
from robopolicy.model.robovlms import CALVIN_LIMIT, calvin_statistics, memory_options, read_checkpoint
from robopolicy.types import TOKENS_KEY, ActionSpec, ArraySpec


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    window: int,
    latent: int = 1,
    pooling: Literal["max", "none"] = "max",
    arm_limit: float = CALVIN_LIMIT,
) -> Path:
    """Write the head of a RoboVLMs checkpoint as a run folder that `robopolicy.load_policy` reads.

    The policy reads the key `tokens` (latent, D), the backbone's action tokens, and acts with CALVIN's action normalization.

    Args:
        source: a checkpoint; see `robopolicy.model.robovlms.read_head`.
        folder: created if missing.
        window: W, frames of memory.
        latent: tokens kept per frame.
        pooling: `max` for RoboVLMs' down-sampling `pooling`, `none` for its `none`.
        arm_limit: the arm action that the head's 1 stands for; CALVIN's by default.
    """
    head, sizes, unused = read_checkpoint(source, window, latent, pooling)
    spec = ActionSpec(arm=sizes.arm, gripper=1, kind="delta", space="ee")
    config = ExperimentConfig(
        data=DataConfig(obs_keys=(TOKENS_KEY,)),
        encoder=component("encoder", "precomputed").options(width=sizes.token_width, hidden=0),
        text=component("text", "none").options(),
        pooling=component("pooling", pooling).options(latent=latent),
        memory=memory_options(sizes, window, latent),
        action_head=component("action_head", "regression").options(chunk=sizes.chunk, widths=sizes.head_widths),
    )
    observation = {TOKENS_KEY: ArraySpec((latent, sizes.token_width))}
    policy = build_policy(config, DemoFacts(spec, observation, action_statistics=calvin_statistics(spec, arm_limit)))
    policy.head.load_state_dict(head.state_dict())
    provenance = {"source": Path(source).name, "origin": "RoboVLMs", "keys_outside_the_head": list(unused)}
    return save_policy(policy.eval(), folder, provenance)
