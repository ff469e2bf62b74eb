"""Steps N simulated worlds of one task together: applies actions, judges the task and builds the observations.

Actions go through the control law of the real-time loop: `joint_targets` and `limit_targets` of `robopolicy.control`, with
the robot's profile. The same code runs on NumPy arrays and, on the physics' device, on torch tensors.
Per-world state is updated in place and control flow on a device does not depend on values, so no step waits for the device.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.arrays import copied, like, namespace, row
from robopolicy.control.kinematics import matrix_to_quaternion, tool_pose
from robopolicy.control.limits import limit_targets
from robopolicy.control.motion import move
from robopolicy.control.replay import REFERENCE
from robopolicy.control.targets import joint_targets
from robopolicy.sim.episodes import Episodes, Sentences, draw
from robopolicy.sim.physics import Fault, Physics
from robopolicy.sim.randomization import Randomization, noise
from robopolicy.sim.render import Renderer
from robopolicy.sim.scene import PANDA
from robopolicy.sim.tasks import State, Task
from robopolicy.sim.tasks.base import Hand
from robopolicy.types import Array

ACTIONS = PANDA.actions
"""Action columns of the one-arm tasks; the gripper column is -1 for open, +1 for closed."""
JOINT_NOISE_RAD = 0.05
"""Standard deviation [rad] that `action_noise` = 1 adds to actions that are joint positions."""
PRIVILEGED = ("target_pos", "target_offset", "goal_pos", "goal_offset", REFERENCE)
"""Keys that only losses, experts and replays read unless `data.obs_keys` names them; observation noise is not added to them."""


class Worlds:
    """N worlds of one task.

    Args:
        task: the task.
        physics: N worlds of the task's scene.
        max_episode_steps: Time limit [control steps].
        renderer: Renders the cameras' images; None without cameras.
        randomization: How episodes differ beyond what the task draws.
        limits: Apply the robot's limits, as the real-time loop does; False: command the target of every action unchanged.
    """

    def __init__(
        self,
        task: Task,
        physics: Physics,
        max_episode_steps: int,
        renderer: Renderer | None = None,
        randomization: Randomization | None = None,
        limits: bool = True,
    ) -> None:
        self.task, self.physics, self.scene = task, physics, physics.scene
        if namespace(physics.qpos) is not np and physics.scene.robot.actions.kind == "absolute":
            raise ValueError("tasks of the two-arm robot are simulated on the CPU; use --physics batch")
        self.actions, self.profile, self.limits = self.scene.robot.actions, self.scene.robot.profile, limits
        self.max_episode_steps, self.randomization = max_episode_steps, randomization or Randomization()
        self.sentences = Sentences()
        """Every distinct instruction drawn so far; `instruction_id` is an index into them."""
        self._renderer = renderer
        self._xp = namespace(physics.qpos)
        template = draw(task, self.scene, [0], self.sentences, self.randomization)
        worlds, (stages, parts) = physics.num_worlds, template.goals.shape[1:]
        self._stages = stages  # instructions per episode
        self._worlds = like(physics.qpos, np.arange(worlds))
        # Per world: the goals of all stages, the goal of the current stage, and the instruction index of all stages.
        self._goals = self._integers(worlds, stages, parts)
        self._goal = self._integers(worlds, parts)
        self._sentence = self._integers(worlds, stages)
        self.instruction_id = self._integers(worlds)
        """(N,) each world's current instruction, as an index into `sentences`."""
        self._seed, self._delay = self._integers(worlds), self._integers(worlds)
        # Control steps for which the current goal has been reached without a break, and control steps of the episode.
        self._held, self._steps = self._integers(worlds), self._integers(worlds)
        self.solved = self._integers(worlds)
        """(N,) instructions solved so far in each world's episode."""
        self.succeeded = self._integers(worlds) > 0
        """(N,) True where every instruction of the episode is solved."""
        self.fault = self._integers(worlds)
        """(N,) `Fault` bits of each world's episode; an episode with any bit set has failed."""
        self.limited = self._integers(worlds)
        """(N,) control steps of each world's episode in which the robot's limits changed the target."""
        self.commanded, self._velocity = (self._kept(np.zeros((worlds, self.profile.joints))) for _ in range(2))
        """(N, joints) joint positions commanded last [rad]; `_velocity` holds the velocities commanded last [rad/s]."""
        self._instructions: tuple[str, ...] | None = None
        if self.randomization.delay_steps and self.actions.kind == "absolute":
            raise ValueError("--randomization.delay_steps needs actions that are deltas; leave it at 0 for this task")
        # Actions that are delayed and not executed yet, newest first, as differences from `_REST`.
        self._late = self._kept(np.zeros((self.randomization.delay_steps, worlds, self.actions.width)))
        self._observe_state()

    def set_up(self, mask: Bool[Array, " worlds"], episodes: Episodes, rows: Int[Array, " worlds"]) -> None:
        """Start new episodes in the worlds of `mask`; world w gets row `rows[w]` of `episodes`."""
        xp, rows = self._xp, rows * mask  # row 0 where the mask is False: any valid index does
        self.physics.reset(mask, episodes.qpos[rows], episodes.mocap_pos[rows])
        self.physics.change(mask, {name: values[rows] for name, values in episodes.fields.items()})
        for record, values in (
            (self._goals, episodes.goals),
            (self._sentence, episodes.sentence),
            (self._seed, episodes.seed),
            (self._delay, episodes.delay),
        ):
            chosen = mask.reshape(-1, *(1,) * (len(record.shape) - 1))
            record[:] = xp.where(chosen, values[rows], record)
        for record in (self.solved, self._held, self._steps, self.succeeded, self.fault, self.limited):
            record *= ~mask
        self.commanded[:] = xp.where(mask[:, None], self.scene.joints_of(episodes.qpos[rows]), self.commanded)
        self._velocity[:] = xp.where(mask[:, None], 0.0, self._velocity)
        self._late *= ~mask[:, None]
        self._set_goals()
        self._observe_state()

    def act(self, actions: Float[Array, "worlds width"]) -> Bool[Array, " worlds"]:
        """Execute one control step in all worlds; returns True where the episode has succeeded or failed."""
        executed = self._executed(actions)
        if (held := self.task.held(self.state)) is not None:
            executed = self._xp.where(held[:, None], executed * like(executed, _GRIPPER_ONLY), executed)
        self.physics.step(self._commands(executed))
        return self.judge()

    def observe(self) -> dict[str, Array]:
        """Read the state from the physics; returns the policy's observation, key -> (N, ...)."""
        self._observe_state()
        return self._observation()

    @property
    def out_of_time(self) -> Bool[Array, " worlds"]:
        """(N,) True where the time limit is reached."""
        return self._steps >= self.max_episode_steps

    def draw(self, seeds: Sequence[int]) -> Episodes:
        """The episodes of these seeds, as NumPy arrays or as tensors on the physics' device."""
        drawn = draw(self.task, self.scene, seeds, self.sentences, self.randomization)
        return drawn if self._xp is np else drawn.on(self.physics.qpos.device)

    def _executed(self, actions: Array) -> Float[Array, "worlds width"]:
        """The actions that are executed: checked, with the episode's noise, clipped to -1 .. 1 (deltas only), and delayed."""
        config = self.randomization
        desired = self._checked(actions)
        if self.actions.kind == "absolute":
            if config.action_noise:
                joints, std = list(self.actions.joint_columns), JOINT_NOISE_RAD * config.action_noise
                desired = copied(desired)
                desired[:, joints] += std * noise(self._seed, self._steps, 0, len(joints))
            return desired
        if config.action_noise:
            disturbed = desired[:, :6] + config.action_noise * noise(self._seed, self._steps, 0, 6)
            desired = self._xp.concatenate([disturbed, desired[:, 6:]], -1)
        clipped = desired.clip(-1.0, 1.0)
        if not config.delay_steps:
            return clipped
        # The queue holds differences from `_REST`, so that a reset to zeros means: rest until the first action arrives.
        rest = like(clipped, _REST)
        line = self._xp.concatenate([clipped[None] - rest, self._late])
        self._late[:] = line[:-1]
        return line[self._delay, self._worlds] + rest

    def _checked(self, actions: Array) -> Array:
        """The actions as floats, all finite.

        NumPy: a value that is not finite raises ValueError. Tensors: it is replaced by 0 and sets `Fault.ACTION` for its world,
        because an exception would have to wait for the device.
        """
        found, expected = tuple(np.shape(actions)), (self.physics.num_worlds, self.actions.width)
        if found != expected:
            raise ValueError(f"actions have shape {found}; expected {expected}: a row for each world")
        if self._xp is np:
            desired = np.asarray(actions, np.float64)
            if not np.isfinite(desired).all():
                worlds = np.flatnonzero(~np.isfinite(desired).all(1)).tolist()
                raise ValueError(f"actions of worlds {worlds} are not finite numbers; check the policy's output")
            return desired
        desired = self._xp.asarray(actions, dtype=self.physics.qpos.dtype, device=self.physics.qpos.device)
        finite = self._xp.isfinite(desired)
        self.fault |= int(Fault.ACTION) * ~finite.all(-1)
        return self._xp.where(finite, desired, 0.0)

    def _commands(self, actions: Float[Array, "worlds width"]) -> Float[Array, "..."]:
        """Joint [rad] and finger [m] targets: (substeps, N, nu), or (N, nu) for the whole control step without limits."""
        xp, qpos, profile = self._xp, self.scene.joints_of(self.physics.qpos), self.profile
        targets = joint_targets(profile, self.actions, actions, qpos, self.scene.control_dt)
        if not self.limits:
            self.commanded[:] = targets.joint_position_rad
            return xp.concatenate([targets.joint_position_rad, self._fingers(targets.gripper_opening_m)], -1)
        opening_m = self._openings_m
        targets = limit_targets(profile, targets, qpos, opening_m, self.scene.control_dt, self.commanded)
        self.limited += targets.intervened
        path, self._velocity[:] = move(
            profile,
            targets.joint_position_rad,
            self.commanded,
            self._velocity,
            self.scene.control_dt,
            self.scene.n_substeps,
        )
        self.commanded[:] = path[-1]
        fingers = self._fingers(targets.gripper_opening_m)
        # `0.0 * path` broadcasts the finger targets over the substeps.
        return xp.concatenate([path, fingers[None] + 0.0 * path[..., :1]], -1)

    def _fingers(self, opening_m: Float[Array, "worlds grippers"]) -> Float[Array, "worlds fingers"]:
        """Finger joint targets (N, 2 * grippers) [m]; each finger moves by half of its gripper's opening."""
        half = opening_m / 2
        return self._xp.stack([half, half], -1).reshape(len(half), -1)

    def judge(self) -> Bool[Array, " worlds"]:
        """Count one control step, read the state, count solved stages; True where the episode has succeeded or failed."""
        self._steps += 1
        self._observe_state()
        state, faults = self.state, self.physics.faults()
        self._held += 1
        self._held *= self.task.reached(state)
        solved = self._held >= self.task.required_hold(state)
        # Shortcut for the common case. NumPy only: on a device, reading `any()` would wait for it.
        if self._xp is np and not (solved.any() or faults.any()):
            return self.succeeded | self.task.failed(state)
        self.fault |= faults
        sound = self.fault == 0
        self._held *= ~solved
        self.solved[:] = (self.solved + solved).clip(max=self._stages)
        self.succeeded[:] = (self.solved == self._stages) & sound
        decided = self.succeeded | self.task.failed(state) | ~sound
        if self._stages > 1:
            self._set_goals()
        return decided

    def _set_goals(self) -> None:
        """Set each world's goal and instruction to those of its current stage."""
        stages = self.solved.clip(max=self._stages - 1)
        self._goal[:] = self._goals[self._worlds, stages]
        self.instruction_id[:] = self._sentence[self._worlds, stages]
        self._instructions = None

    def _observe_state(self) -> None:
        """Read `state` from the physics, and move the mocap bodies that the task arranges."""
        physics, scene = self.physics, self.scene
        qpos = physics.qpos
        joints, self._openings_m = scene.joints_of(qpos), scene.openings_of(qpos)
        hands = []
        for place, (_, arm, columns, _) in enumerate(self.profile.parts):
            assert arm.arm is not None
            hands.append(Hand(*tool_pose(arm.arm, joints[:, columns]), self._openings_m[:, place]))
        velocity = physics.qvel[:, scene.object_velocity_slice].reshape(len(qpos), -1, 6)[..., :3]
        self.state = State(
            worlds=self._worlds,
            qpos=qpos,
            qvel=physics.qvel,
            mocap_pos=physics.mocap_pos,
            objects=qpos[:, scene.object_slice].reshape(len(qpos), -1, 7),
            object_speed=(velocity * velocity).sum(-1) ** 0.5,
            ee_position=hands[0].position,
            ee_rotation=hands[0].rotation,
            opening=hands[0].opening,
            goal=self._goal,
            step=self._steps,
            hands=tuple(hands),
        )
        arranged = self.task.arrange(self.state, scene)
        if arranged is not None:
            physics.mocap_pos[:] = arranged

    def _observation(self) -> dict[str, Array]:
        """Key -> (N, ...): proprioception and objects with noise, then `to_<object>`, privileged keys and images without."""
        state = self.state
        objects = self.task.observe(state, self.scene)
        obs = {
            f"{name}_ee_pose" if name else "ee_pose": row(hand.position, matrix_to_quaternion(hand.rotation))
            for (name, *_), hand in zip(self.profile.parts, state.hands, strict=True)
        }
        obs |= {"gripper": row(self._openings_m), "qpos": row(self.scene.joints_of(state.qpos)), **objects}
        if self.randomization.obs_noise:
            std = self.randomization.obs_noise
            obs = {
                key: row(values + std * noise(self._seed, self._steps, 1 + place, values.shape[1]))
                for place, (key, values) in enumerate(obs.items())
            }
        target, goal = self.task.target(state), self.task.spot(state)
        obs |= {f"to_{key}": obs[key][:, -3:] for key, values in objects.items() if values.shape[1] > 3}
        hand = state.ee_position
        privileged = (target, target - hand, goal, goal - hand, self.commanded)
        obs |= {key: row(values) for key, values in zip(PRIVILEGED, privileged, strict=True)}
        if self._renderer is not None:
            obs |= self._renderer.render()
        return obs

    def _integers(self, *shape: int) -> Int[Array, "..."]:
        return self._kept(np.zeros(shape, np.int64))

    def _kept(self, values: np.ndarray) -> Array:
        """These values as an array or tensor like the physics' own, to be updated in place."""
        return values if self._xp is np else like(self.physics.qpos, values).clone()


_GRIPPER_ONLY = np.array([0.0] * 6 + [1.0])
"""Factors that leave only the gripper of an action."""
_REST = np.array([0.0] * 6 + [-1.0])
"""The action that moves nothing and opens the gripper."""
