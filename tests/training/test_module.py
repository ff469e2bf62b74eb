"""Training under Lightning is the plain loop one would write by hand, with its schedule, averages and carried states."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robopolicy.experiment import ExperimentConfig, OptimizerConfig, build_policy
from robopolicy.experiment.building import key_scaling
from robopolicy.model.policy import ChunkPolicy
from robopolicy.training import module as module_under_test
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.module import (
    PolicyTraining,
    Schedule,
    Tally,
    copy_sharing_frozen,
    parameter_groups,
)
from robopolicy.training.objective import Objective
from robopolicy.training.train import make_trainer, quiet_lightning
from robopolicy.types import Batch
from tests.small_runs import SMALL


def experiment(path: Path, **changes: object) -> ExperimentConfig:
    given = SMALL | {"data.files": [str(path)], "data.batch_size": 6}
    return ExperimentConfig().change(given | {name.replace("__", "."): value for name, value in changes.items()})


def parts(data: DemoDataModule) -> tuple[ChunkPolicy, Objective]:
    """An untrained policy for these demos and what it is trained on."""
    policy = build_policy(data.experiment, data.facts)
    config = data.experiment
    return policy, Objective(
        config.losses, policy, key_scaling(config.normalization, data.privileged, data.obs_statistics)
    )


def training(data: DemoDataModule, schedule: Schedule, **settings: object) -> PolicyTraining:
    return PolicyTraining(*parts(data), schedule, OptimizerConfig(**settings))


@pytest.fixture
def data(tiny_demos: Path) -> DemoDataModule:
    return opened(experiment(tiny_demos))


def opened(config: ExperimentConfig) -> DemoDataModule:
    torch.manual_seed(0)
    data = DemoDataModule(config)
    data.setup()
    return data


def weights(policy: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def fit(module: PolicyTraining, data: DemoDataModule, config: ExperimentConfig, folder: Path) -> None:
    steps = module.schedule.max_steps
    with quiet_lightning():
        training, accumulate = replace(config.training, max_steps=steps), config.optimizer.accumulate
        make_trainer(training, config.encoder, accumulate, folder, []).fit(module, data)


def test_training_is_the_loop_one_would_write_by_hand(data: DemoDataModule, tmp_path: Path) -> None:
    """Guards against: a skipped clip, a schedule off by one, or an average before the step, hidden by Lightning's hooks."""
    policy, objective = parts(data)
    by_hand, average = copy.deepcopy(policy), copy.deepcopy(policy)
    schedule = Schedule(max_steps=9, warmup_steps=3, min_lr_scale=0.1)
    settings = OptimizerConfig(lr=1e-2, encoder_lr_scale=0.5, weight_decay=0.1, clip_norm=0.05)
    module = PolicyTraining(policy, objective, schedule, settings)
    fit(module, data, data.experiment, tmp_path)

    groups = parameter_groups(torch.nn.ModuleList([by_hand]), settings)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    loader, step = opened(data.experiment).train_dataloader(), 0
    while step < 9:
        for batch in loader:
            if step == 9:
                break
            optimizer.zero_grad()
            objective(by_hand, batch)[0]["loss"].backward()
            torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * schedule.lr_scale(step, step / 9)
            optimizer.step()
            decay = (1 + step) / (10 + step)
            for mine, theirs in zip(average.parameters(), by_hand.parameters(), strict=True):
                mine.data.copy_(decay * mine + (1 - decay) * theirs)
            step += 1
    torch.testing.assert_close(weights(policy), weights(by_hand), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(module.evaluated), weights(average), rtol=1e-5, atol=1e-6)
    assert module.evaluated is not policy


def test_without_averaging_the_policy_itself_is_evaluated(data: DemoDataModule) -> None:
    """Guards against: an average that is off but still evaluated, which would be the untrained policy."""
    module = training(data, Schedule(1), ema=False)
    assert module.evaluated is module.policy


def test_the_schedule_warms_up_and_ends_at_its_lowest_rate() -> None:
    """Guards against: a cosine that ends early or late, with the last steps at a useless rate."""
    schedule = Schedule(max_steps=100, warmup_steps=10, min_lr_scale=0.01)
    scales = [schedule.lr_scale(step, schedule.progress(step)) for step in range(101)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == pytest.approx(max(scales), rel=0.05)
    assert scales[10:] == sorted(scales[10:], reverse=True)
    assert scales[100] == pytest.approx(0.01)
    assert Schedule(max_steps=10).lr_scale(0, 0.0) == 1.0


def test_the_schedule_follows_the_clock_where_time_runs_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against: a run cut off by its time limit at a high rate."""
    now = [1000.0]
    monkeypatch.setattr(module_under_test.time, "monotonic", lambda: now[0])
    schedule = Schedule(max_steps=1000, min_lr_scale=0.01, max_minutes=2.0)
    schedule.start(earlier_s=30.0)
    assert schedule.progress(100) == pytest.approx(0.25)
    now[0] += 30.0
    assert schedule.progress(100) == pytest.approx(0.5)
    assert schedule.progress(900) == pytest.approx(0.9)
    now[0] += 300.0
    assert schedule.progress(100) == 1.0
    assert schedule.lr_scale(100, 1.0) == pytest.approx(0.01)


def test_each_trained_parameter_is_in_one_group_and_only_matrices_decay(data: DemoDataModule) -> None:
    """Guards against: decayed biases and norms, or a parameter in no group, which never learns."""
    policy, _ = parts(data)
    frozen = next(policy.head.parameters()).requires_grad_(False)
    settings = OptimizerConfig(lr=1e-3, encoder_lr_scale=0.1, weight_decay=0.05, memory_weight_decay=0.5)
    groups = parameter_groups(torch.nn.ModuleList([policy]), settings)
    grouped = {id(member): group for group in groups for member in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(grouped)
    for name, parameter in policy.named_parameters():
        if parameter is frozen:
            assert id(parameter) not in grouped
            continue
        group = grouped[id(parameter)]
        decay = 0.5 if name.startswith("head.memory.") else 0.05
        assert group["weight_decay"] == (decay if parameter.ndim > 1 else 0.0)
        assert group["peak_lr"] == pytest.approx(1e-4 if name.startswith("encoder.") else 1e-3)


@pytest.mark.parametrize(("freeze_steps", "moves"), [(9, False), (8, True)])
def test_late_parameters_stay_until_their_first_step(
    data: DemoDataModule, tmp_path: Path, freeze_steps: int, moves: bool
) -> None:
    """Guards against: an instruction gate that learns from random weights in the first steps and shuts out the named object."""
    module = training(data, Schedule(max_steps=9), lr=1e-2, weight_decay=0.1)
    late = module.policy.encoder.together
    late.freeze_steps = freeze_steps
    before = [parameter.clone() for parameter in late.parameters()]
    fit(module, data, data.experiment, tmp_path)
    same = [torch.equal(one, other) for one, other in zip(before, late.parameters(), strict=True)]
    assert not any(same) if moves else all(same)


def test_the_average_shares_what_is_not_trained(data: DemoDataModule) -> None:
    """Guards against: a frozen vision-language backbone held twice, which would fill the memory for nothing."""
    policy, _ = parts(data)
    frozen = next(policy.head.parameters()).requires_grad_(False)
    average = copy_sharing_frozen(torch.nn.ModuleList([policy]))
    assert next(average[0].head.parameters()) is frozen
    assert not {id(p) for p in average.parameters()} & {id(p) for p in policy.parameters() if p.requires_grad}


def test_means_over_batches_weigh_each_valid_action_alike() -> None:
    """Guards against: the mean of batch means, which favors the actions of sparsely filled batches."""
    tally = Tally()
    tally.add({"arm": torch.tensor(1.0)}, torch.tensor(30))
    tally.add({"arm": torch.tensor(4.0)}, torch.tensor(10))
    tally.add({"arm": torch.tensor(0.0)}, torch.tensor(0))
    assert tally.take() == {"arm": pytest.approx(1.75)}
    assert tally.take() == {}


def test_validation_measures_the_average_and_leaves_training_as_it_was(data: DemoDataModule) -> None:
    """Guards against: validation that left the policy in eval mode, which would switch dropout off for the rest of the run."""
    module = training(data, Schedule(1))
    policy = module.policy
    for parameter in policy.parameters():
        parameter.data.fill_(float("nan"))
    policy.train()
    terms = module.validate(data.val_dataloader())
    assert all(value == value for value in terms.values())
    assert {"loss", "loss_arm", "loss_gripper", "gripper_accuracy"} <= set(terms)
    assert policy.training
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_validation_loss_does_not_depend_on_the_batch_size(tiny_demos: Path, size: int) -> None:
    """Guards against: a checkpoint chosen by a loss that depends on the batch size."""
    data = opened(experiment(tiny_demos, data__batch_size=size))
    torch.manual_seed(0)
    terms = training(data, Schedule(1)).validate(data.val_dataloader())
    whole = opened(experiment(tiny_demos))
    torch.manual_seed(0)
    expected = training(whole, Schedule(1)).validate(whole.val_dataloader())
    assert terms == pytest.approx(expected, rel=1e-5)


def carry_batches(tiny_demos: Path, segment: int | None) -> tuple[DemoDataModule, list[Batch]]:
    data = opened(experiment(tiny_demos, memory__history="carry", data__segment=segment))
    return data, list(data.train_dataloader())


def test_truncated_training_of_whole_episodes_has_the_gradients_of_the_full_pass(tiny_demos: Path) -> None:
    """Guards against: a state left over from other episodes, or a gradient cut inside the chunk."""
    data, batches = carry_batches(tiny_demos, segment=None)
    (policy, objective), batch = parts(data), batches[0]
    left_over = replace(policy.initial_state(6), tensors=tuple(torch.ones(1, 6, 8) for _ in range(2)))
    terms, _ = objective(policy, batch, left_over)
    truncated = torch.autograd.grad(terms["loss"], list(policy.parameters()), allow_unused=True)
    full = torch.autograd.grad(objective(policy, batch)[0]["loss"], list(policy.parameters()), allow_unused=True)
    for one, other in zip(truncated, full, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_the_state_goes_on_between_segments_of_an_episode_without_its_gradient(tiny_demos: Path) -> None:
    """Guards against: segments begun from zero, or a state whose graph keeps every earlier batch in memory."""
    data, batches = carry_batches(tiny_demos, segment=4)
    _, (full,) = carry_batches(tiny_demos, segment=None)
    policy, objective = parts(data)
    tally, state = Tally(), None
    for batch in batches:
        terms, state = objective(policy, batch, state)
        assert not any(part.requires_grad for part in state.tensors)
        tally.add(terms, batch.action_valid.sum())
    assert batches[1].episode_start is not None
    assert not batches[1].episode_start.all()
    assert tally.take()["loss_arm"] == pytest.approx(objective(policy, full)[0]["loss_arm"].item(), rel=1e-5)
