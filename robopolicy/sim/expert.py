"""The scripted experts: their actions, batched, as a function of the worlds' current state alone, and their episodes.

An expert keeps no memory, so that it can label any state that a policy reached (DAgger) and recovers from a disturbance
(DART). Each task says where its expert goes next (`Task.intent`); here that becomes an action within the robot's limits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float

from robopolicy.arrays import like, namespace, row
from robopolicy.components import Options, option
from robopolicy.control.kinematics import damped_least_squares, pose_and_jacobian, rotation_vector
from robopolicy.control.targets import POSITION_SCALE_M, ROTATION_SCALE_RAD, joint_targets
from robopolicy.rollout.episodes import Episode, run_episodes
from robopolicy.sim.device_rollout import run_episodes_on_device
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.tasks import State
from robopolicy.sim.worlds import ACTIONS, Worlds
from robopolicy.types import ActionSpec, Array

OPEN, CLOSED = -1.0, 1.0
STEP_M = 0.05
STEP_RAD = 0.08
"""Largest displacement of the tool that an expert asks for in one step [m], [rad]; well within the robot's limits."""
VELOCITY_SHARE = 0.8
"""Share of the joints' velocity limits that an expert asks for, so that the robot's limits change none of its actions."""
APPROACH_GAIN = 0.8
"""Share of the way to its goal that an expert asks for in one step, so that the arm can come to rest there."""


HAND_STEP_M = 0.007
HAND_STEP_RAD = 0.035
"""As above, for each hand of the two-arm robot, whose control step is 0.02 s [m], [rad]."""
JOINT_STEP_RAD = 0.025
"""Largest displacement of a joint that the two-arm robot's expert asks for in one step [rad]."""
HAND_DAMPING = 0.03
"""Damping of the least squares that turn the motion of a hand into one of the joints."""


def expert_actions(worlds: Worlds) -> Float[Array, "worlds width"]:
    """The scripted expert's action (N, width) for the present state of every world."""
    state = worlds.state
    if worlds.actions.kind == "absolute":
        return _joint_actions(worlds)
    goal, closed = worlds.task.intent(state)
    return within_limits(worlds, towards(state, goal, closed))


def within_limits(worlds: Worlds, action: Float[Array, "worlds width"]) -> Float[Array, "worlds width"]:
    """The action (N, width) with its displacement shortened to what the robot's limits leave unchanged, with some margin."""
    if worlds.actions.kind == "absolute":
        joints = list(worlds.actions.joint_columns)
        lower, upper = worlds.profile.soft_limits_rad
        near = worlds.commanded - JOINT_STEP_RAD, worlds.commanded + JOINT_STEP_RAD
        action[:, joints] = action[:, joints].clip(*near).clip(lower, upper)
        return action
    shift = _bounded(action[:, :3], STEP_M / POSITION_SCALE_M)
    turn = _bounded(action[:, 3:6], STEP_RAD / ROTATION_SCALE_RAD)
    profile, control_dt = worlds.profile, worlds.scene.control_dt
    qpos = worlds.state.qpos[:, : profile.joints]
    asked = joint_targets(profile, ACTIONS, row(shift, turn, action[:, 6:]), qpos, control_dt).joint_position_rad - qpos
    reach = like(qpos, np.multiply(profile.velocity_rad_s, VELOCITY_SHARE * control_dt))
    excess = namespace(qpos).amax(abs(asked) / reach, -1)[:, None].clip(1.0)
    return row(shift / excess, turn / excess, action[:, 6:])


def _joint_actions(worlds: Worlds) -> Float[Array, "worlds width"]:
    """Absolute joint targets that move every hand towards the task's intent, from where the joints are commanded to be."""
    action = np.zeros((len(worlds.commanded), worlds.actions.width), np.float32)
    for (name, arm, joints, _), intent in zip(worlds.profile.parts, worlds.task.intents(worlds.state), strict=True):
        spec, columns = worlds.actions.arm_specs[name], np.array(sorted(worlds.actions.arms[name]))
        assert arm.arm is not None
        commanded = worlds.commanded[:, joints]
        position, rotation, jacobian = pose_and_jacobian(arm.arm, commanded)
        shift = _bounded(APPROACH_GAIN * (intent.position - position), HAND_STEP_M)
        turn = _bounded(rotation_vector(intent.rotation @ rotation.mT), HAND_STEP_RAD)
        step = damped_least_squares(jacobian, np.concatenate([shift, turn], -1), HAND_DAMPING)
        step = step * (JOINT_STEP_RAD / abs(step).max(-1)[:, None].clip(JOINT_STEP_RAD))
        lower, upper = arm.soft_limits_rad
        action[:, columns[list(spec.joint_columns)]] = (commanded + step).clip(lower, upper)
        column, opened, shut = spec.gripper_ends[0]
        action[:, columns[column]] = np.where(intent.closed, shut, opened)
    return action


def towards(state: State, goal: Float[Array, "worlds 3"], closed: Bool[Array, " worlds"]) -> Float[Array, "worlds 7"]:
    """Action that moves the fingertips towards `goal` [m], keeps the hand pointing down, and sets the gripper."""
    shift = APPROACH_GAIN * (goal - state.ee_position) / POSITION_SCALE_M
    turn = rotation_vector(state.ee_rotation.mT) / ROTATION_SCALE_RAD
    return row(shift, turn, OPEN + (CLOSED - OPEN) * closed[:, None])


def _bounded(vector: Float[Array, "worlds 3"], longest: float) -> Float[Array, "worlds 3"]:
    """The vector, shortened to at most this length."""
    length = (vector * vector).sum(-1)[:, None] ** 0.5
    return vector * (longest / length.clip(longest))


JOINT_NOISE_RAD = 0.01
"""Joint offset of a disturbance of 1, for actions that are joint positions [rad]."""
NOISE_STREAM = 1
"""Second word of the noise generator's seed, so that noise and scene are independent."""


@dataclass(frozen=True)
class ActionNoise(Options):
    """Disturbance of the executed action, so that demos contain recoveries (DART, Laskey et al. 2017).

    Jitter alone shows how to stay on course. Pushes that last a few steps, and inversions of the gripper, show how to
    recover from a missed grasp, from fingers closed too early and from a hand off its path. A closed gripper is never
    opened: the place where a dropped object comes to rest can't be reproduced on a robot.
    """

    section: ClassVar[str] = "disturbance"

    std: float = option(0.25, ">= 0")
    """Standard deviation of the jitter on the arm's displacement, in the action's units of [-1, 1]; 0 is off."""
    rotation_std: float = option(0.02, ">= 0")
    """The same for the rotation; smaller, since policies make smaller errors in it."""
    share: float = option(0.7, "0 .. 1")
    """Share of the steps with jitter."""
    push_std: float = option(0.4, ">= 0")
    """Standard deviation of a push, the same displacement added in each of its steps; 0 is off."""
    push_share: float = option(0.04, "0 .. 1")
    """Probability that a push begins at a step."""
    push_steps: int = option(5, ">= 1")
    """Steps that a push lasts."""
    flip_share: float = option(0.3, "0 .. 1")
    """Share of the pushes during which an open gripper closes."""

    @classmethod
    def off(cls) -> "ActionNoise":
        """No disturbance: the executed action is the label."""
        return cls(std=0.0, rotation_std=0.0, push_std=0.0, push_share=0.0)


def drawn_noise(noise: ActionNoise, seed: int, steps: int, actions: ActionSpec) -> Float[np.ndarray, "steps width"]:
    """The disturbance of one episode's actions, step by step, drawn from its seed alone.

    For joint targets: offsets in units of `JOINT_NOISE_RAD`, 0 for the grippers. For displacements of the tool: the noise on
    the displacement (6,), then a factor for the gripper, where -1 inverts it.
    """
    joints = actions.kind == "absolute"
    pushed = list(actions.joint_columns) if joints else [0, 1, 2]
    rng, left, push, flipped = np.random.default_rng([seed, NOISE_STREAM]), 0, np.zeros(len(pushed)), False
    added = np.zeros((steps, actions.width))
    for step in added:
        if left == 0 and rng.random() < noise.push_share:
            left, push = noise.push_steps, rng.normal(0.0, noise.push_std, len(pushed))
            flipped = not joints and rng.random() < noise.flip_share
        if rng.random() < noise.share:
            step[pushed] += rng.normal(0.0, noise.std, len(pushed))
            if not joints:
                step[3:6] = rng.normal(0.0, noise.rotation_std, 3)
        if not joints:
            step[6] = -1.0 if left and flipped else 1.0
        if left:
            left -= 1
            step[pushed] += push
    return added


class ExpertActor:
    """The scripted expert with disturbed actions; it keeps no state.

    Args:
        env: the worlds.
        noise: the disturbance.
    """

    def __init__(self, env: RobotVectorEnv, noise: ActionNoise) -> None:
        self.env, self.noise = env, noise
        self._added: Array = np.zeros((env.num_envs, env.max_episode_steps, env.actions.width))
        """(rows, steps, width) the disturbance of an episode in each row."""
        self._row_of: Array = np.arange(env.num_envs)
        """(N,) the row of each world's episode."""

    def reset(self, done: Array, seeds: Any) -> None:
        """Draw the disturbances of the episodes that begin."""
        for world in np.flatnonzero(done).tolist():
            self._added[world] = self._drawn(seeds[world])

    def act(self, obs: Mapping[str, Array], instructions: Any) -> tuple[Array, Array]:
        """The expert's action as label; the disturbed one as the action executed."""
        label = expert_actions(self.env)
        added = self._added[self._row_of, self.env.state.step.clip(max=self._added.shape[1] - 1)]
        if self.env.actions.kind == "absolute":
            return label, within_limits(self.env, label + (JOINT_NOISE_RAD * added).astype(label.dtype))
        gripper = label[:, 6:]
        gripper = namespace(gripper).where(gripper < 0, gripper * added[:, 6:], gripper)
        return label, within_limits(self.env, row(label[:, :6] + added[:, :6], gripper))

    def _drawn(self, seed: int) -> np.ndarray:
        return drawn_noise(self.noise, seed, self._added.shape[1], self.env.actions)


class DeviceExpertActor(ExpertActor):
    """The same on the worlds' device; all disturbances are drawn in advance, so that no step waits for the device.

    Args:
        env: worlds on a device.
        noise: the disturbance.
        seeds: of the episodes that will be run.
    """

    def __init__(self, env: RobotVectorEnv, noise: ActionNoise, seeds: Sequence[int]) -> None:
        super().__init__(env, noise)
        table = np.stack([self._drawn(seed) for seed in seeds]).astype(np.float32)
        self._added = torch.from_numpy(table).to(env.physics.qpos.device)
        self._row_of = torch.zeros(env.num_envs, dtype=torch.int64, device=self._added.device)

    def reset(self, done: Array, seeds: Any) -> None:
        """Take the disturbances of the new episodes, given by their places in the constructor's seeds."""
        self._row_of = torch.where(done, seeds, self._row_of)


def collect(
    env: RobotVectorEnv,
    seeds: Sequence[int],
    noise: ActionNoise,
    *,
    record: bool = True,
) -> Iterator[Episode]:
    """Expert episodes, one per seed, in the order in which they end; failures too, for the caller to drop and count."""
    if env.on_device:
        actor = DeviceExpertActor(env, noise, seeds)
        return run_episodes_on_device(env, actor, seeds, record=record)
    return run_episodes(env, ExpertActor(env, noise), seeds, record=record)
