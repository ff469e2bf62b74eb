"""N worlds of one task, stepped together: actions to joint motions, the state that tasks judge, what a policy sees.

Actions go through the control law of the real-time loop: `joint_targets` and `limit_targets` of `robopolicy.control`, with
the robot's profile. The code is the same for NumPy arrays and torch tensors, on the physics' device. Records are written
in place and control flow does not depend on values, so that nothing waits for a device.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.control.arrays import copied, like, namespace, row
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
"""What the action columns of tasks with one arm are; gripper -1 open, +1 closed."""
JOINT_NOISE_RAD = 0.05
"""Joint noise of an `action_noise` of 1, for actions that are joint positions [rad]."""
PRIVILEGED = ("target_pos", "target_offset", REFERENCE)
"""Keys for losses, experts and replays, to which no noise is added."""


class Worlds:
    """N worlds of one task.

    Args:
        task: the task.
        physics: N worlds of the task's scene.
        max_episode_steps: Time limit [control steps].
        renderer: Renders the cameras' images; None without cameras.
        randomization: How episodes differ beyond what the task draws.
        limits: Apply the robot's limits, as the real-time loop does; False commands every action unchanged.
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
        """All instructions so far; `instruction_id` is an index into them."""
        self._renderer = renderer
        self._xp = namespace(physics.qpos)
        template = draw(task, self.scene, [0], self.sentences, self.randomization)
        worlds, (stages, parts) = physics.num_worlds, template.goals.shape[1:]
        self._stages = stages
        self._worlds = like(physics.qpos, np.arange(worlds))
        self._goals = self._integers(worlds, stages, parts)
        self._goal = self._integers(worlds, parts)
        self._sentence = self._integers(worlds, stages)
        self.instruction_id = self._integers(worlds)
        """(N,) each world's current instruction, as an index into `sentences`."""
        self._seed, self._delay = self._integers(worlds), self._integers(worlds)
        self._held, self._steps = self._integers(worlds), self._integers(worlds)
        self.solved = self._integers(worlds)
        """(N,) instructions solved so far in each world's episode."""
        self.succeeded = self._integers(worlds) > 0
        """(N,) whether all of them are solved."""
        self.fault = self._integers(worlds)
        """(N,) `Fault` bits of each world's episode; an episode with any has failed."""
        self.limited = self._integers(worlds)
        """(N,) control steps of each world's episode in which the robot's limits changed the target."""
        self.commanded, self._velocity = (self._kept(np.zeros((worlds, self.profile.joints))) for _ in range(2))
        """(N, joints) where the joints have been commanded to be [rad], and how fast they were commanded to move."""
        self._instructions: tuple[str, ...] | None = None
        if self.randomization.delay_steps and self.actions.kind == "absolute":
            raise ValueError("--randomization.delay_steps is for actions that are deltas; leave it at 0 for this task")
        self._late = self._kept(np.zeros((self.randomization.delay_steps, worlds, self.actions.width)))
        self._observe_state()

    def set_up(self, mask: Bool[Array, " worlds"], episodes: Episodes, rows: Int[Array, " worlds"]) -> None:
        """Reset the worlds in `mask`, world w to row `rows[w]` of `episodes`; other worlds' rows are not used."""
        xp, rows = self._xp, rows * mask
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
        """One control step of all worlds; True where an episode is decided."""
        self.physics.step(self._commands(self._executed(actions)))
        return self.judge()

    def observe(self) -> dict[str, Array]:
        """Read the state; returns the policy's observation, per key (N, ...)."""
        self._observe_state()
        return self._observation()

    @property
    def out_of_time(self) -> Bool[Array, " worlds"]:
        """Where the time limit is reached."""
        return self._steps >= self.max_episode_steps

    def draw(self, seeds: Sequence[int]) -> Episodes:
        """The episodes of these seeds, as arrays of the physics' kind."""
        drawn = draw(self.task, self.scene, seeds, self.sentences, self.randomization)
        return drawn if self._xp is np else drawn.on(self.physics.qpos.device)

    def _executed(self, actions: Array) -> Float[Array, "worlds width"]:
        """The executed actions: checked, clipped, with the episode's noise and delay."""
        config = self.randomization
        wanted = self._checked(actions)
        if self.actions.kind == "absolute":
            if config.action_noise:
                joints, std = list(self.actions.joint_columns), JOINT_NOISE_RAD * config.action_noise
                wanted = copied(wanted)
                wanted[:, joints] += std * noise(self._seed, self._steps, 0, len(joints))
            return wanted
        if config.action_noise:
            disturbed = wanted[:, :6] + config.action_noise * noise(self._seed, self._steps, 0, 6)
            wanted = self._xp.concatenate([disturbed, wanted[:, 6:]], -1)
        clipped = wanted.clip(-1.0, 1.0)
        if not config.delay_steps:
            return clipped
        rest = like(clipped, _REST)  # executed until the first delayed action arrives
        line = self._xp.concatenate([clipped[None] - rest, self._late])
        self._late[:] = line[:-1]
        return line[self._delay, self._worlds] + rest

    def _checked(self, actions: Array) -> Array:
        """The actions, finite: the host refuses others, a device marks the world and continues with zeros."""
        found, expected = tuple(np.shape(actions)), (self.physics.num_worlds, self.actions.width)
        if found != expected:
            raise ValueError(f"actions have shape {found}; expected {expected}: a row for each world")
        if self._xp is np:
            wanted = np.asarray(actions, np.float64)
            if not np.isfinite(wanted).all():
                worlds = np.flatnonzero(~np.isfinite(wanted).all(1)).tolist()
                raise ValueError(
                    f"actions of worlds {worlds} are not finite numbers; the policy that gave them is broken"
                )
            return wanted
        wanted = self._xp.asarray(actions, dtype=self.physics.qpos.dtype, device=self.physics.qpos.device)
        finite = self._xp.isfinite(wanted)
        self.fault |= int(Fault.ACTION) * ~finite.all(-1)
        return self._xp.where(finite, wanted, 0.0)

    def _commands(self, actions: Float[Array, "worlds width"]) -> Float[Array, "..."]:
        """Joint and finger targets (N, nu) [rad, m] of the whole control step, or of each of its ticks (ticks, N, nu)."""
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
        return xp.concatenate([path, fingers[None] + 0.0 * path[..., :1]], -1)

    def _fingers(self, opening_m: Float[Array, "worlds grippers"]) -> Float[Array, "worlds fingers"]:
        """Targets of the fingers [m], two for each gripper."""
        half = opening_m / 2
        return self._xp.stack([half, half], -1).reshape(len(half), -1)

    def judge(self) -> Bool[Array, " worlds"]:
        """Count a control step, read the state and count solved stages; True where an episode is decided."""
        self._steps += 1
        self._observe_state()
        state, faults = self.state, self.physics.faults()
        self._held += 1
        self._held *= self.task.reached(state)
        solved = self._held >= self.task.required_hold(state)
        if self._xp is np and not (solved.any() or faults.any()):  # a check that is free on the host only
            return self.succeeded | self.task.failed(state)  # nothing below would change anything
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
        """Give each world the goal and the instruction of its current stage."""
        stages = self.solved.clip(max=self._stages - 1)
        self._goal[:] = self._goals[self._worlds, stages]
        self.instruction_id[:] = self._sentence[self._worlds, stages]
        self._instructions = None

    def _observe_state(self) -> None:
        """Read the state from the physics."""
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
        target = self.task.target(state)
        obs |= {f"to_{key}": obs[key][:, -3:] for key, values in objects.items() if values.shape[1] > 3}
        privileged = (target, target - state.ee_position, self.commanded)
        obs |= {key: row(values) for key, values in zip(PRIVILEGED, privileged, strict=True)}
        if self._renderer is not None:
            obs |= self._renderer.render()
        return obs

    def _integers(self, *shape: int) -> Int[Array, "..."]:
        return self._kept(np.zeros(shape, np.int64))

    def _kept(self, values: np.ndarray) -> Array:
        """A record of these values, of the physics' kind, that is written in place."""
        return values if self._xp is np else like(self.physics.qpos, values).clone()


_REST = np.array([0.0] * 6 + [-1.0])
"""No motion, open gripper."""
