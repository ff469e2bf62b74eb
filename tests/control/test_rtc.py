"""Real-time chunking: chunks that continue the plan which is executed while they are inferred."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.control.execution import execution_from, require_supported
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.loop import ControlLoop
from robopolicy.rollout.actor import SteppedExecution
from robopolicy.types import ActionSpec, PolicySpec, Prefix
from tests.control.test_loop import EE, ListRecorder, ScriptedInference
from tests.exporting import make_policy

CONTROL_DT = 0.05
SPEC = ActionSpec(arm=2, gripper=1, kind="delta")


def rtc(latency_steps, replan_every=1, **options):
    values = {"kind": "rtc", "latency_s": latency_steps * CONTROL_DT, "replan_every": replan_every, **options}
    return execution_from(values)


@pytest.mark.parametrize("latency", [0, 1, 3])
def test_actions_of_the_latency_are_executed_as_planned(latency):
    """Guards against: a chunk that changes the actions which pass during its inference, or begins at another step."""
    torch.manual_seed(0)
    chunk, spec = 8, PolicySpec({}, SPEC, chunk=8, window=1, prefix=8)
    execution = SteppedExecution(spec, CONTROL_DT, rtc(latency, simulated_latency_steps=latency), (2,))
    handed, executed, taken = [], [], []

    def infer(now_s, prefix):
        handed.append(prefix)
        rows = torch.rand(2, chunk, 3) - 0.5
        if prefix is not None:
            first = prefix.actions[:, : prefix.frozen]
            rows[:, : prefix.frozen] = torch.where(first.isnan(), rows[:, : prefix.frozen], first)
        return rows, None

    for step in range(40):
        before = execution.executor._merges.clone() if step else torch.zeros(2)
        executed.append(execution.action(infer))
        if (execution.executor._merges > before).all():
            taken.append(step)
            observed = step - latency
            for k in range(latency if handed[observed] is not None else 0):
                assert torch.equal(executed[observed + k], handed[observed].actions[:, k])
    assert set(torch.tensor(taken).diff().tolist()) == {max(latency, 1)}


def test_a_chunk_that_continues_an_older_plan_is_not_taken():
    """Guards against: a jump where two inferences are under way and the first one's chunk changes the plan."""
    executor, other = (ChunkExecutor(6, CONTROL_DT, rtc(1)) for _ in range(2))
    for each in (executor, other):
        each.add(torch.zeros(6, 1), 0.0)
        handed = [each.prefix(step * CONTROL_DT) for step in (1, 2)]
        assert [prefix.actions[:, 0].isnan().sum() for prefix in handed] == [1, 2]
        each.add(torch.full((6, 1), 1.0), 1 * CONTROL_DT, now_s=2 * CONTROL_DT)
    executor.add(torch.full((6, 1), 2.0), 2 * CONTROL_DT, now_s=3 * CONTROL_DT)
    assert 0 < executor.action(3 * CONTROL_DT).item() == other.action(3 * CONTROL_DT).item() < 1
    for each, continued in ((executor, True), (other, False)):
        each.prefix(3 * CONTROL_DT)
        if continued:
            each.add(torch.full((6, 1), 3.0), 3 * CONTROL_DT, now_s=4 * CONTROL_DT)
    assert executor.action(4 * CONTROL_DT).item() > other.action(4 * CONTROL_DT).item()


def test_an_episode_without_a_plan_hands_over_nan():
    """Guards against: an episode that begins with the zeros of an empty plan as its committed actions."""
    executor = ChunkExecutor(4, CONTROL_DT, rtc(2), batch=2, action_spec=SPEC)
    assert executor.prefix(0.0) is None
    executor.add(torch.tensor([0.3, 0.1, -1.0]).expand(2, 4, 3), 0.0)
    executor.reset(torch.tensor([True, False]))
    prefix = executor.prefix(CONTROL_DT)
    assert prefix.frozen == 2
    assert prefix.actions[0].isnan().all()
    assert prefix.actions[1, :, 2].nan_to_num(7.0).tolist() == [-1, -1, -1, 7]


@pytest.mark.parametrize(("head", "options"), [("flow", {}), ("flow", {"prefix": 2}), ("regression", {"prefix": 2})])
def test_a_policy_begins_its_chunk_with_the_plan_bit_for_bit(head, options):
    """Guards against: committed actions rounded by units, or NaN of an episode without a plan in its chunk."""
    changes = {"action_head.kind": head, "action_head.chunk": 4}
    policy = make_policy(changes=changes | {f"action_head.{name}": value for name, value in options.items()})
    obs = {key: torch.randn(3, *spec.shape) for key, spec in policy.obs.items()}
    rows, state = policy.act(obs, policy.initial_state(3))
    plan = rows + 0.01 * torch.randn_like(rows) * (torch.arange(5) < 2)
    plan[1] = torch.nan
    plan[2, 2:] = torch.nan
    chunk, _ = policy.act(obs, state, prefix=Prefix(plan, frozen=2))
    assert torch.equal(chunk[[0, 2], :2], plan[[0, 2], :2])
    assert chunk.isfinite().all()
    free, _ = policy.act(obs, state)
    torch.testing.assert_close(chunk[1], free[1], atol=1e-5, rtol=0)


def test_guidance_draws_the_chunk_towards_the_plan():
    """Guards against: an overlap behind the frozen actions that has no influence, or a full one."""
    policy = make_policy(changes={"action_head.kind": "flow", "action_head.chunk": 4})
    obs = {key: torch.randn(*spec.shape) for key, spec in policy.obs.items()}
    free, _ = policy.act(obs, policy.initial_state(), generator=torch.Generator().manual_seed(0))
    arm, scale = list(policy.action_spec.arm_columns), policy.action_normalizer.arm_scale
    plan = free.clone()
    plan[:, arm] = 0.5 * free[:, arm] + 0.5 * policy.action_normalizer.arm_offset
    again = torch.Generator().manual_seed(0)
    guided, _ = policy.act(obs, policy.initial_state(), generator=again, prefix=Prefix(plan, frozen=1))
    left = ((guided - plan)[:, arm] / scale).abs().mean(dim=1) / ((free - plan)[:, arm] / scale).abs().mean(dim=1)
    assert left[0] == 0
    assert left[1] < 0.8
    assert left[1] < left[3] < 1


@pytest.mark.parametrize("head", ["flow", "gmm", "discrete"])
def test_the_best_of_several_chunks_agrees_more(head):
    """Guards against: a choice among samples that ignores the plan, or mixes the chunks of several episodes."""
    policy = make_policy(changes={"action_head.kind": head, "action_head.chunk": 4})
    obs = {key: torch.randn(8, *spec.shape) for key, spec in policy.obs.items()}
    state = policy.initial_state(8)
    plan, _ = policy.act(obs, state)
    arm = list(policy.action_spec.arm_columns)
    away = {}
    for count in (1, 16):
        noise = torch.Generator().manual_seed(0)
        chunk, _ = policy.act(obs, state, generator=noise, prefix=Prefix(plan, frozen=0, best_of=count))
        assert chunk.shape == plan.shape
        away[count] = (chunk - plan)[:, 0, arm].abs().mean().item()
    assert away[16] < away[1]


def test_a_policy_that_cannot_be_executed_so_is_refused():
    """Guards against: real-time chunking with a head that ignores the plan, found out on the robot."""
    spec = PolicySpec({}, SPEC, chunk=8, window=1)
    with pytest.raises(ConfigError, match=r"--execution\.kind rtc needs a policy that continues a plan"):
        require_supported(spec, rtc(1), CONTROL_DT)
    with pytest.raises(ConfigError, match="3 control steps, and the policy continues a prefix of at most 2 actions"):
        require_supported(PolicySpec({}, SPEC, chunk=8, window=1, prefix=2), rtc(3), CONTROL_DT)
    with pytest.raises(ConfigError, match=r"--execution\.sample true needs a policy that draws its chunks"):
        require_supported(spec, execution_from({"sample": True}), CONTROL_DT)
    with pytest.raises(ConfigError, match=r"--execution\.best_of 4 .* needs --execution\.sample true"):
        execution_from({"best_of": 4})
    with pytest.raises(ConfigError, match=r"5 steps of latency with chunks of 8 actions.* train chunks of 10 or more"):
        ChunkExecutor(8, CONTROL_DT, rtc(5))
    with pytest.raises(ConfigError, match="simulated_latency_steps 8: the policy's chunks have 8 actions"):
        SteppedExecution(spec, CONTROL_DT, execution_from({"simulated_latency_steps": 8}))


@dataclass
class ContinuingInference(ScriptedInference):
    """Chunks of random numbers that begin with the plan, as a policy's do."""

    def request(self, t_s, prefix=None):
        """Continue the plan."""
        chunk = 0.2 * torch.rand(8, 7).numpy() - 0.1
        if prefix is not None:
            first = prefix.actions[: prefix.frozen]
            chunk[: prefix.frozen] = np.where(np.isnan(first), chunk[: prefix.frozen], first)
        self.script = lambda asked, observation: chunk
        super().request(t_s)


def test_the_loop_executes_what_its_policy_was_told(fake_robot, fake_clock):
    """Guards against: a control loop that doesn't hand the plan to its policy, or too late."""
    torch.manual_seed(0)
    handed, taken, recorder = {}, [], ListRecorder()
    inference = ContinuingInference(fake_robot, fake_clock, None, latency_s=0.09)
    executor = ChunkExecutor(8, CONTROL_DT, rtc(2, replan_every=2), action_spec=EE)
    hand_over, add = executor.prefix, executor.add

    def prefix(t_s):
        handed[round(t_s / CONTROL_DT)] = hand_over(t_s)
        return handed[round(t_s / CONTROL_DT)]

    def noted(actions, t_obs_s, **options):
        before = 0 if executor._origin_s is None else int(executor._merges)
        add(actions, t_obs_s, **options)
        if int(executor._merges) > before:
            taken.append(round(t_obs_s / CONTROL_DT))

    executor.prefix, executor.add = prefix, noted
    loop = ControlLoop(fake_robot, inference, executor, EE, clock=fake_clock, recorder=recorder)
    loop.run(2.0)
    assert loop.stopped is None
    executed = {round(tick.t_s / CONTROL_DT): tick.action for tick in recorder.steps if tick.action is not None}
    assert len(taken) >= 10
    compared = 0
    for step in taken:
        for k in (0, 1):
            if handed[step] is not None and np.isfinite(handed[step].actions[k]).all():
                np.testing.assert_array_equal(executed[step + k][:6], handed[step].actions[k, :6])
                compared += 1
    assert compared >= 16


def test_an_observation_of_the_next_step_keeps_the_plan_until_then():
    """Guards against: a traceback, or an action a step early, where the robot observes late into a control step."""
    executor = ChunkExecutor(3, CONTROL_DT)
    executor.add(torch.tensor([[1.0], [2.0], [3.0]]), 0.0)
    executor.add(torch.tensor([[5.0], [6.0], [7.0]]), 2 * CONTROL_DT, now_s=CONTROL_DT)
    assert [executor.action(step * CONTROL_DT).item() for step in (1, 2, 3)] == [2.0, 5.0, 6.0]
