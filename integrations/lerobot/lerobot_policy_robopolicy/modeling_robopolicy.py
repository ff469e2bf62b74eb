"""A robopolicy policy as a LeRobot policy: batches and observations in LeRobot's form in, its losses and actions out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_robopolicy.configuration_robopolicy import RobopolicyConfig
from robopolicy.components import ConfigError
from robopolicy.demos.formats.lerobot import LeRobotReader
from robopolicy.experiment.building import build_policy, key_scaling
from robopolicy.experiment.reading import config_to_dict
from robopolicy.experiment.run_folder import describe, policy_of, save_policy
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.actor import Runner
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.module import PolicyTraining, Schedule, parameter_groups
from robopolicy.training.objective import Objective
from robopolicy.training.train import make_training
from robopolicy.types import ArraySpec, Batch, Observation


class RobopolicyPolicy(PreTrainedPolicy):
    """Trains with robopolicy's objective and acts with its memory and chunk execution.

    A checkpoint's folder is a run folder of robopolicy as well: `robopolicy.load_policy` and every verb read it.

    Args:
        config: a checkpoint's, or a new one's, which is completed from the data set.
        dataset_meta: of the data set that is trained on; may be missing for a checkpoint that only acts.

    Raises:
        ConfigError: a new policy without a data set, or an experiment that doesn't fit the data.
    """

    config_class = RobopolicyConfig
    name = "robopolicy"

    def __init__(self, config: RobopolicyConfig, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        self.config: RobopolicyConfig = config
        self.learner = _learner(config, dataset_meta)
        # A buffer, so that a resumed training goes on with the same averaging.
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._instructions: dict[str, int] = {}
        self._runner: Runner | None = None

    @property
    def policy(self) -> ChunkPolicy:
        """The policy of robopolicy, with averaged weights unless `optimizer.ema` is off: what acts and what is saved."""
        return self.learner.evaluated

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of windows, and its terms.

        Args:
            batch: LeRobot's: features (B, W, ...), `action` and `action_is_pad` (B, N, ...), `task` (B strings).
        """
        segments = self.segments(batch)
        if self.training and self.learner.augmentation is not None:
            segments = self.learner.augmentation(segments)
        terms, _ = self.learner.objective(self.learner.policy, segments)
        return terms["loss"], {name: float(value.detach()) for name, value in terms.items() if name != "loss"}

    def segments(self, batch: Mapping[str, Any]) -> Batch:
        """A batch of LeRobot's as robopolicy's objective takes it."""
        policy, settings = self.learner.policy, self.config.settings
        privileged = {key: spec for key, spec in self.learner.objective.privileged.specs.items()}
        specs = {**policy.obs, **privileged}
        chunk, stride = settings.action_head.chunk, settings.data.frame_stride
        # Row of each of the K actions of each frame, counted from the window's first.
        offsets = stride * torch.arange(len(self.config.frames))[:, None] + torch.arange(chunk)
        offsets = offsets.to(policy.device)
        tasks = batch.get("task") or [""] * len(batch["action"])
        valid = ~batch["action_is_pad"].to(policy.device)[:, offsets]
        ids = [self._instructions.setdefault(task, len(self._instructions)) if task else -1 for task in tasks]
        return Batch(
            obs={key: self._observed(batch, key, spec) for key, spec in specs.items()},
            instruction_id=torch.tensor(ids, device=policy.device),
            instructions=tuple(self._instructions),
            target=policy.action_normalizer.to_target(batch["action"].to(policy.device)[:, offsets]),
            action_valid=valid,
            frame_valid=valid[:, :, 0],
        )

    def update(self) -> None:
        """Move the averaged weights; LeRobot calls it after every optimizer step."""
        self.learner.average(int(self.updates))
        self.updates += 1

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Trained parameters by learning rate, weight decay and first step."""
        return parameter_groups(self.learner.trained, self.learner.settings)

    # -- acting --------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the episode: memory and chunks. Weights that were trained since are used from here on."""
        self._runner = None

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The action (B, A) of this control step, in the data set's units; every call is one step of each episode."""
        runner = self._running(batch)
        obs, tasks = self._observation(batch)
        return torch.from_numpy(runner.act(obs, tasks)).to(self.policy.device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next K actions (B, K, A) from this observation on; every call is one frame of the memory."""
        runner = self._running(batch)
        obs, tasks = self._observation(batch)
        return torch.as_tensor(runner.stream(Observation(obs, instruction=tasks)))

    def _running(self, batch: Mapping[str, Any]) -> Runner:
        count = len(next(batch[feature] for feature, *_ in self.config.columns.values()))
        if self._runner is None or self._runner.batch != (count,):
            policy = self.policy.eval()
            policy = policy.freeze() if policy.device.type == "cpu" else policy
            self._runner = Runner(policy, batch=count)
        return self._runner

    def _observation(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str | None] | None]:
        obs = {key: self._observed(batch, key, spec) for key, spec in self.policy.obs.items()}
        tasks = batch.get("task")
        if tasks is None:
            return obs, None
        return obs, [tasks] if isinstance(tasks, str) else [task or None for task in tasks]

    def _observed(self, batch: Mapping[str, Any], key: str, spec: ArraySpec) -> Tensor:
        """A key of robopolicy out of LeRobot's features: images uint8 and channels last, columns of vectors."""
        feature, start, stop = self.config.columns[key]
        if feature not in batch:
            there = ", ".join(name for name in batch if name.startswith("observation."))
            raise KeyError(
                f"feature {feature!r} is not in this batch, and the policy reads it as {key!r}; it has: {there}"
            )
        values = batch[feature].to(self.learner.policy.device)
        if spec.is_image:
            values = values.movedim(-3, -1)
            return values if values.dtype == torch.uint8 else (values * 255).round().to(torch.uint8)
        return values[..., start:stop].unflatten(-1, spec.shape).float()

    # -- files ---------------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        """LeRobot's checkpoint, and the files of a run folder beside it."""
        super()._save_pretrained(save_directory, **kwargs)
        save_policy(self.policy, save_directory, self.config.description["provenance"])


def _learner(config: RobopolicyConfig, dataset_meta: Any) -> PolicyTraining:
    """The policy under training that a config describes; a new config is completed from its data set."""
    settings = config.settings
    if dataset_meta is None:
        if not config.description:
            raise ConfigError(
                "a new robopolicy policy is made for a data set, and there is none; train it with lerobot-train, "
                "or give a checkpoint: --policy.path=FOLDER"
            )
        policy = policy_of(config.description, settings, "config.json")
        privileged = {key: ArraySpec(tuple(spec["shape"]), spec["dtype"]) for key, spec in config.privileged.items()}
        objective = Objective(settings.losses, policy, key_scaling(settings.normalization, privileged, None))
        return PolicyTraining(policy, objective, Schedule(1), settings.optimizer)
    # LeRobot splits off what it holds out.
    files = {"data.files": [str(dataset_meta.root)], "data.valid_fraction": 0.0}
    data = DemoDataModule(settings.change(files), "cpu", read_images=False)
    data.setup()
    if config.description:  # training goes on from a checkpoint: its own statistics and words
        return make_training(settings, data, policy_of(config.description, settings, "config.json"))
    policy = build_policy(settings, data.facts)
    config.experiment, config.experiment_file = config_to_dict(settings), None
    config.description = describe(policy, data.provenance)
    config.privileged = {key: {"shape": list(s.shape), "dtype": s.dtype} for key, s in data.privileged.items()}
    reader = LeRobotReader(Path(dataset_meta.root))
    for key in (*data.obs, *data.privileged):
        feature, columns = reader.columns(key)
        config.columns[key] = [feature, columns.start, columns.stop]
    reader.close()
    return make_training(settings, data, policy)
