"""The LeRobot plug-in: the same losses and actions as robopolicy's own, with LeRobot where it is installed, else a stand-in.

`test_lerobot_environment.py` runs this file with the real package.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from robopolicy import load_policy
from robopolicy.demos.formats import open_demos
from robopolicy.demos.formats.lerobot import LeRobotFormat, LeRobotOptions
from robopolicy.experiment.building import build_policy
from robopolicy.experiment.reading import config_from_dict
from robopolicy.experiment.run_folder import save_policy
from robopolicy.rollout.actor import Runner
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.train import make_trainer, make_training, quiet_lightning

pytest.importorskip("pyarrow", reason="LeRobot's files need the extra formats")
PLUGIN = Path(__file__).parents[2] / "integrations" / "lerobot"
REAL = importlib.util.find_spec("lerobot") is not None
if not REAL:
    from tests.integrations.lerobot_stand_in import MODULES, install

    install()
sys.path.insert(0, str(PLUGIN))

from lerobot_policy_robopolicy.configuration_robopolicy import RobopolicyConfig  # noqa: E402
from lerobot_policy_robopolicy.convert import to_lerobot  # noqa: E402
from lerobot_policy_robopolicy.modeling_robopolicy import RobopolicyPolicy  # noqa: E402

if not REAL:  # other tests must not find a LeRobot
    for name in MODULES:
        sys.modules.pop(name)

STEPS = 50
CHANGES = {
    "encoder.kind": "pixels",
    "memory.window": 3,
    "memory.hidden": 8,
    "action_head.chunk": 2,
    "execution.replan_every": 2,
    "optimizer.warmup_steps": 5,
    "data.cameras": ["front"],
}


def config() -> RobopolicyConfig:
    return RobopolicyConfig(experiment=dict(CHANGES), device="cpu", push_to_hub=False)


@pytest.fixture(scope="module")
def dataset(tiny_demos, tmp_path_factory) -> Path:
    """The tiny demos as a LeRobot data set, images as PNG."""
    target = tmp_path_factory.mktemp("lerobot") / "tiny"
    with open_demos(tiny_demos) as source:
        LeRobotFormat(LeRobotOptions(images="png")).write(source, target, source.names)
    (target / "meta" / "robopolicy.json").write_text(
        json.dumps({**json.loads((target / "meta" / "robopolicy.json").read_text()), "filter_keys": {}})
    )
    return target


class Frames:
    """What LeRobot's data set returns for a frame, as its loader collates it."""

    def __init__(self, root: Path, settings: RobopolicyConfig) -> None:
        self.root, self.settings = root, settings
        with open_demos(root) as reader:
            demos = [reader.read(name) for name in reader.names]
            self.keys = {key: reader.columns(key)[0] for key in demos[0].obs}
        self.ends = np.repeat(np.cumsum([len(demo) for demo in demos]), [len(demo) for demo in demos])
        self.tasks = [demo.instruction or "" for demo in demos for _ in range(len(demo))]
        self.actions = np.concatenate([demo.actions for demo in demos])
        self.obs = {key: np.concatenate([demo.obs[key] for demo in demos]) for key in demos[0].obs}

    def batch(self, starts: np.ndarray) -> dict[str, Any]:
        """The frames at these rows, with those before and after them that the config asks for."""
        if REAL:
            return self.real_batch(starts)
        last = self.ends[starts][:, None] - 1
        rows = np.minimum(starts[:, None] + self.settings.observation_delta_indices, last)
        ahead = starts[:, None] + self.settings.action_delta_indices
        found: dict[str, Any] = {"action": torch.from_numpy(self.actions[np.minimum(ahead, last)])}
        state = [values[rows] for key, values in self.obs.items() if self.keys[key] == "observation.state"]
        found["observation.state"] = torch.from_numpy(np.concatenate(state, axis=-1))
        found["observation.images.front"] = torch.from_numpy(self.obs["front"][rows]).movedim(-1, -3) / 255
        return {**found, "action_is_pad": torch.from_numpy(ahead > last), "task": [self.tasks[row] for row in starts]}

    def real_batch(self, starts: np.ndarray) -> dict[str, Any]:
        """Out of LeRobot's own data set."""
        from lerobot.datasets.factory import resolve_delta_timestamps
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

        if not hasattr(self, "data"):
            meta = LeRobotDatasetMetadata("local/tiny", root=self.root)
            deltas = resolve_delta_timestamps(self.settings, meta)
            self.data = LeRobotDataset("local/tiny", root=self.root, delta_timestamps=deltas)
        return torch.utils.data.default_collate([self.data[int(row)] for row in starts])


def own_training(dataset: Path, steps: int) -> tuple[Any, Any]:
    """The same experiment in robopolicy's own training, with all demos."""
    values = {"data.files": [str(dataset)], "data.valid_fraction": 0.0, "training.max_steps": steps}
    experiment = config().settings.change(values)
    data = DemoDataModule(experiment, "cpu")
    data.setup()
    torch.manual_seed(0)
    return make_training(experiment, data, build_policy(experiment, data.facts)), data


def plugin_policy(dataset: Path) -> RobopolicyPolicy:
    torch.manual_seed(0)
    return RobopolicyPolicy(config(), dataset_meta=SimpleNamespace(root=dataset))


def own_losses(module: Any, data: Any, batches: list[Any], folder: Path) -> list[float]:
    """Of robopolicy's own training loop."""
    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    data.train_dataloader = lambda: torch.utils.data.DataLoader(batches, batch_size=None)
    with quiet_lightning():
        config = module.policy.config
        trainer = make_trainer(config.training, config.encoder, config.optimizer.accumulate, folder, [Losses()])
        trainer.fit(module, datamodule=data)
    return losses


def plugin_losses(policy: RobopolicyPolicy, batches: list[dict[str, Any]]) -> list[float]:
    """Of LeRobot's training step where it is installed, else of the same calls in its order."""
    preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
    optimizer = torch.optim.AdamW(
        policy.get_optim_params(), lr=preset.lr, betas=preset.betas, weight_decay=preset.weight_decay
    )
    scheduler = schedule.build(optimizer, STEPS)
    losses = []
    for batch in batches:
        policy.train()
        loss, _ = policy.forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        policy.update()
        losses.append(float(loss.detach()))
    return losses


def test_fifty_steps_have_the_losses_of_our_own_training(dataset, tmp_path):
    """Guards against: another window, target, schedule or weight decay than robopolicy's, under LeRobot."""
    module, data = own_training(dataset, STEPS)
    policy = plugin_policy(dataset)
    frames = Frames(dataset, policy.config)
    store = data.train_dataloader().store
    rng = np.random.default_rng(0)
    starts = [rng.integers(0, len(store), 8) for _ in range(STEPS)]
    seed_everything(0, verbose=False)
    own = own_losses(module, data, [store.gather(torch.from_numpy(rows)) for rows in starts], tmp_path)
    theirs = plugin_losses(policy, [frames.batch(rows) for rows in starts])
    assert len(own) == STEPS
    assert own[-1] < own[0]
    np.testing.assert_allclose(theirs, own, rtol=1e-5)
    ours = module.evaluated.state_dict()
    for name, value in policy.policy.state_dict().items():
        torch.testing.assert_close(value, ours[name], rtol=1e-4, atol=1e-5)


def test_actions_are_those_of_our_own_runner(dataset, tmp_path):
    """Guards against: another image range, column order, memory or chunk execution than robopolicy's, under LeRobot."""
    policy = plugin_policy(dataset).eval()
    policy.save_pretrained(tmp_path / "checkpoint")
    read = RobopolicyPolicy.from_pretrained(tmp_path / "checkpoint")
    own = Runner(load_policy(tmp_path / "checkpoint"), batch=2)
    frames = Frames(dataset, policy.config)
    for episode in range(2):
        read.reset()
        own.reset()
        for step in range(7):
            rows = np.array([step, 12 + step]) + episode
            batch = frames.batch(rows)
            seen = {
                key: value[:, 0] for key, value in batch.items() if key.startswith("observation.") and "pad" not in key
            }
            obs = {key: values[rows] for key, values in frames.obs.items()}
            expected = own.act(obs, batch["task"])
            np.testing.assert_allclose(read.select_action({**seen, "task": batch["task"]}), expected, atol=1e-6)


def test_a_chunk_is_the_policys_own_and_is_one_frame_of_memory(dataset):
    """Guards against: asynchronous inference whose memory stands still, or whose actions are in other units."""
    policy = plugin_policy(dataset).eval()
    frames = Frames(dataset, policy.config)
    own, state = policy.policy, policy.policy.initial_state(2)
    policy.reset()
    for step in range(3):
        rows = np.array([step, 12 + step])
        batch = frames.batch(rows)
        seen = {key: value[:, 0] for key, value in batch.items() if key.startswith("observation.") and "pad" not in key}
        chunk = policy.predict_action_chunk({**seen, "task": batch["task"]})
        obs = {key: values[rows] for key, values in frames.obs.items()}
        expected, state = own.act({**obs, "instruction": batch["task"]}, state)
        np.testing.assert_allclose(chunk, expected, atol=1e-6)
        assert chunk.shape == (2, 2, 7)


def test_a_run_folder_becomes_a_checkpoint_and_stays_a_run_folder(dataset, tmp_path):
    """Guards against: a conversion that loses weights, statistics, words or columns, in either direction."""
    module, data = own_training(dataset, 1)
    run = save_policy(module.policy, tmp_path / "run", data.provenance)
    target = to_lerobot(run, tmp_path / "checkpoint", dataset)
    read = RobopolicyPolicy.from_pretrained(target)
    again, first = load_policy(target), load_policy(run)
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
        assert torch.equal(read.policy.state_dict()[name], value)
    assert again.spec == first.spec
    assert (target / "policy_preprocessor.json").is_file()
    assert read.config.columns["gripper"] == plugin_policy(dataset).config.columns["gripper"]


def test_a_missing_feature_is_named_with_those_there_are(dataset):
    """Guards against: a bare KeyError where an environment's camera has another name."""
    policy = plugin_policy(dataset).eval()
    with pytest.raises(KeyError, match=r"observation\.images\.front.*it has: observation\.state"):
        policy.select_action({"observation.state": torch.zeros(1, 11)})


def test_a_carried_memory_is_refused_for_training():
    """Guards against: truncated BPTT over frames that LeRobot draws at random."""
    carried = RobopolicyConfig(experiment={"memory.history": "carry"}, device="cpu")
    with pytest.raises(ValueError, match="robopolicy train"):
        _ = carried.observation_delta_indices


def test_a_new_policy_without_a_data_set_is_refused():
    """Guards against: a policy of random statistics in an evaluation."""
    with pytest.raises(ValueError, match=r"--policy\.path"):
        RobopolicyPolicy(config())


def test_a_checkpoint_causes_no_import(dataset):
    """Guards against: a config from a hub that names a module to import."""
    made = plugin_policy(dataset).config
    made.experiment["plugins"] = ["antigravity_of_a_stranger"]
    copy = RobopolicyConfig(experiment=made.experiment, description=made.description, device="cpu")
    assert copy.settings.plugins == ("antigravity_of_a_stranger",)
    assert config_from_dict(made.experiment).plugins == copy.settings.plugins
