"""A run folder of robopolicy -> a checkpoint of LeRobot, which stays a run folder.

The way back needs no conversion: every checkpoint that `lerobot-train` writes holds a run folder's files too.
"""

import argparse
import sys
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from lerobot_policy_robopolicy.configuration_robopolicy import RobopolicyConfig
from lerobot_policy_robopolicy.modeling_robopolicy import RobopolicyPolicy
from lerobot_policy_robopolicy.processor_robopolicy import make_robopolicy_pre_post_processors
from robopolicy.demos.formats.lerobot import LeRobotReader
from robopolicy.experiment.reading import config_to_dict
from robopolicy.experiment.run_folder import describe, read_policy, read_provenance
from robopolicy.model.policy import ChunkPolicy


def to_lerobot(run: str | Path, target: str | Path, dataset: str | Path | None = None) -> Path:
    """Write the policy of a run folder as a LeRobot checkpoint: `--policy.path=TARGET`.

    Args:
        run: a run folder.
        target: a new folder.
        dataset: LeRobot data set whose features hold the policy's keys; None: cameras are `observation.images.NAME`, and
            all other keys, one after another, `observation.state`.

    Raises:
        FileExistsError: the target exists.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder")
    trained = read_policy(run)
    columns = _columns_of(trained) if dataset is None else _columns_in(trained, Path(dataset))
    config = RobopolicyConfig(
        experiment=config_to_dict(trained.config),
        description=describe(trained, read_provenance(run)),
        columns=columns,
        input_features=_features(trained, columns),
        output_features={"action": PolicyFeature(FeatureType.ACTION, (trained.action_spec.width,))},
        device="cpu",
        push_to_hub=False,
    )
    policy = RobopolicyPolicy(config)
    for module in policy.learner.trained[:1], policy.learner.averaged or []:
        for part in module[:1]:
            part.load_state_dict(trained.state_dict())
    policy.eval().save_pretrained(target)
    for pipeline in make_robopolicy_pre_post_processors(config):
        pipeline.save_pretrained(target)
    return target


def _columns_in(policy: ChunkPolicy, dataset: Path) -> dict[str, list]:
    reader = LeRobotReader(dataset)
    found = {key: reader.columns(key) for key in policy.obs}
    reader.close()
    return {key: [feature, columns.start, columns.stop] for key, (feature, columns) in found.items()}


def _columns_of(policy: ChunkPolicy) -> dict[str, list]:
    columns: dict[str, list] = {}
    stop = 0
    for key, spec in policy.obs.items():
        if spec.is_image:
            columns[key] = [f"observation.images.{key}", None, None]
        else:
            start, stop = stop, stop + spec.width
            columns[key] = ["observation.state", start, stop]
    return columns


def _features(policy: ChunkPolicy, columns: dict[str, list]) -> dict[str, PolicyFeature]:
    features: dict[str, PolicyFeature] = {}
    for key, (feature, _, stop) in columns.items():
        spec = policy.obs[key]
        if spec.is_image:
            height, width, channels = spec.shape
            features[feature] = PolicyFeature(FeatureType.VISUAL, (channels, height, width))
        else:
            known = features[feature].shape[0] if feature in features else 0
            kind = FeatureType.ENV if feature == "observation.environment_state" else FeatureType.STATE
            features[feature] = PolicyFeature(kind, (max(known, stop or spec.width),))
    return features


def main() -> int:
    """`robopolicy-to-lerobot RUN TARGET [--dataset FOLDER]`."""
    parser = argparse.ArgumentParser(description="Write a run folder of robopolicy as a LeRobot checkpoint.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("target", help="new folder, for --policy.path")
    parser.add_argument("--dataset", help="LeRobot data set whose features hold the policy's keys")
    given = parser.parse_args()
    try:
        print(f"written   {to_lerobot(given.run, given.target, given.dataset)}")
    except (ValueError, OSError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
