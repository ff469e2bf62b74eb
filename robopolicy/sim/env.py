"""A gymnasium vector environment over physics, task and renderer: N worlds, one call a control step."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float

from robopolicy.control.kinematics import PANDA, damped_least_squares, matrix_to_quaternion, pose_and_jacobian
from robopolicy.sim.physics import BatchPhysics
from robopolicy.sim.scene import ARM_JOINTS, CAMERAS, MAX_OPENING_M, PHYSICS_DT, build_scene
from robopolicy.sim.tasks import TASKS, Setup, State, make_task

POSITION_SCALE_M = 0.05
ROTATION_SCALE_RAD = 0.5
"""What an action of 1 asks for in one control step, as robosuite's OSC_POSE."""
FARTHEST = 1e3
"""Bound of the observation space: an object that fell off the table ends the episode long before it is so far [m]."""
POSTURE_GAIN = 0.1
"""Share of the way back to the home posture, made each step in the arm's null space."""


class RobotVectorEnv(VectorEnv):
    """N worlds of one task.

    Actions (N, 7) in [-1, 1]: displacement of the gripper x y z [0.05 m], rotation vector [0.5 rad], both in the base
    frame and relative to the present pose; then the gripper, -1 open, 1 closed. Values beyond are clipped.

    Observations are float32 rows, pictures uint8; `target_pos` and `target_offset`, the named object's position and the
    way there from the fingertips [m], are privileged; `to_<object>` tells the way to each object. Each world's episode is
    determined by its seed alone. With autoreset disabled (the default), a world whose episode ended goes on being
    simulated until it is reset with `options={"reset_mask": ...}`.

    Args:
        task: Name of the task; the error of a wrong one lists them.
        num_envs: N.
        cameras: Cameras whose pictures are part of the observation: `front`, `wrist`.
        image_size: Side of the pictures [pixels].
        num_threads: Threads of the physics; None takes one per CPU.
        physics_dt: Seconds of one physics step; must divide the control step of 0.05 s.
        autoreset_mode: What happens after an episode's end, as gymnasium names it.
        max_episode_steps: Time limit; None takes the task's.
        task_options: Keyword arguments of the task's class, such as `delay_steps` of `recall`.
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        cameras: Sequence[str] = (),
        image_size: int = 64,
        num_threads: int | None = None,
        physics_dt: float = PHYSICS_DT,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        task_options: Mapping[str, Any] | None = None,
    ) -> None:
        if unknown := [name for name in cameras if name not in CAMERAS]:
            raise ValueError(f"no camera {unknown[0]!r} in the scene; it has: {', '.join(CAMERAS)}")
        self.task = make_task(task, **(task_options or {}))
        self.num_envs = num_envs
        self.cameras = tuple(cameras)
        self.max_episode_steps = max_episode_steps or self.task.max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": ["rgb_array"], "render_fps": 20}
        self.render_mode = None
        self.scene = build_scene(self.task.parts, physics_dt)
        self.physics = BatchPhysics(self.scene, num_envs, num_threads, poses=bool(self.cameras))
        self._renderer = None
        if self.cameras:
            from robopolicy.sim.render import Renderer

            self._renderer = Renderer(self.scene, num_envs, self.cameras, image_size)
        self._worlds = np.arange(num_envs)
        self._allocate(self.task.sample(self.scene, np.random.default_rng([0, 0])))
        self._observe_state()
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (ARM_JOINTS,), np.float32)
        self.single_observation_space = gymnasium.spaces.Dict(
            {key: _space(value) for key, value in self._observation().items()}
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def _allocate(self, template: Setup) -> None:
        """Make the per-world records, sized by one drawn episode."""
        worlds, (stages, parts) = self.num_envs, template.goals.shape
        self._goals = np.zeros((worlds, stages, parts), np.int64)
        self._goal = self._goals[:, 0]
        self._sentences = [template.instructions] * worlds
        self._stage = np.zeros(worlds, np.int64)
        self._held = np.zeros(worlds, np.int64)
        self._steps = np.zeros(worlds, np.int64)
        self._ended = np.zeros(worlds, bool)
        self._success = np.zeros(worlds, bool)
        self._episode_seeds: list[int | None] = [None] * worlds
        self.instructions: tuple[str, ...] = tuple(sentences[0] for sentences in self._sentences)
        """What is asked of each world at present."""

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        return self.scene.control_dt

    @property
    def episode_figures(self) -> tuple[str, ...]:
        """Names in `info` that say how far an episode came."""
        return ("solved",)

    @property
    def model_xml(self) -> str:
        """The scene as one MJCF text."""
        return self.scene.xml

    def states(self) -> Float[np.ndarray, "worlds nq_plus_nv"]:
        """Positions and velocities of every world, side by side; a copy."""
        return np.concatenate([self.physics.qpos, self.physics.qvel], axis=1)

    @property
    def state(self) -> State:
        """The present, as tasks and experts see it."""
        return self._state

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes: in all worlds, or where `options["reset_mask"]` (N,) is True.

        Args:
            seed: One seed for each world, or one from which they count up; None goes on drawing.
            options: `reset_mask`, the worlds to reset; the others are left as they are.
        """
        mask = np.ones(self.num_envs, bool)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], bool)
        self._start(mask, self._seeds(seed, mask))
        self._observe_state()
        return self._observation(), self._info()

    def _seeds(self, seed: int | Sequence[int | None] | None, mask: Bool[np.ndarray, " worlds"]) -> list[int]:
        if isinstance(seed, (int, np.integer)):
            self._np_random, self._np_random_seed = seeding.np_random(int(seed))
            return [int(seed) + world for world in range(self.num_envs)]
        seeds = list(seed) if seed is not None else [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} worlds; give one each, or a single number")
        return [
            int(self.np_random.integers(2**31)) if each is None and wanted else int(each or 0)
            for each, wanted in zip(seeds, mask, strict=True)
        ]

    def _start(self, mask: Bool[np.ndarray, " worlds"], seeds: Sequence[int]) -> None:
        """Draw and set up the episodes of the worlds in `mask`."""
        task_id = list(TASKS).index(self.task.name)
        qpos, mocap_pos = self.physics.qpos.copy(), self.physics.mocap_pos.copy()
        for world in np.flatnonzero(mask).tolist():
            setup = self.task.sample(self.scene, np.random.default_rng([seeds[world], task_id]))
            qpos[world], mocap_pos[world] = setup.qpos, setup.mocap_pos
            self._goals[world] = setup.goals
            self._sentences[world] = setup.instructions
            self._episode_seeds[world] = seeds[world]
        self.physics.reset(mask, qpos, mocap_pos)
        for record in (self._stage, self._held, self._steps, self._ended, self._success):
            record[mask] = 0
        self._tell()

    def _tell(self) -> None:
        stages = np.minimum(self._stage, self._goals.shape[1] - 1)
        self._goal = self._goals[self._worlds, stages]
        self.instructions = tuple(
            sentences[stage] for sentences, stage in zip(self._sentences, stages.tolist(), strict=True)
        )

    def step(
        self, actions: Float[np.ndarray, "worlds 7"]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step of all worlds: observation, reward (1 at success), terminated, truncated, info."""
        restarted = self._ended.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else None
        self.physics.step(self._targets(actions))
        self._steps += 1
        self._observe_state()
        terminated = self._judge()
        truncated = (self._steps >= self.max_episode_steps) & ~terminated
        reward = self._success.astype(np.float64)
        self._ended = terminated | truncated
        if restarted is not None and restarted.any():
            self._restart(restarted)
            terminated[restarted] = truncated[restarted] = False
            reward[restarted] = 0.0
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            return self._same_step(reward, terminated, truncated)
        return self._observation(), reward, terminated, truncated, self._info()

    def _targets(self, actions: Float[np.ndarray, "worlds 7"]) -> Float[np.ndarray, "worlds 9"]:
        """Joint targets [rad] and finger targets [m] of an action."""
        wanted = np.asarray(actions, np.float64)
        if not np.isfinite(wanted).all():
            worlds = np.flatnonzero(~np.isfinite(wanted).all(1)).tolist()
            raise ValueError(f"actions of worlds {worlds} are not finite numbers; the policy that gave them is broken")
        clipped = np.minimum(np.maximum(wanted, -1.0), 1.0)
        qpos = self.physics.qpos[:, :ARM_JOINTS]
        posture = POSTURE_GAIN * (self.scene.home_qpos[:ARM_JOINTS] - qpos)
        step = damped_least_squares(self._jacobian, clipped[:, :6] * _SCALE, posture=posture)
        targets = np.empty((self.num_envs, ARM_JOINTS + 2))
        targets[:, :ARM_JOINTS] = np.minimum(np.maximum(qpos + step, _LOWER_RAD), _UPPER_RAD)
        targets[:, ARM_JOINTS:] = MAX_OPENING_M / 4 * (1.0 - clipped[:, 6:])
        return targets

    def _judge(self) -> Bool[np.ndarray, " worlds"]:
        """Count solved stages; True where the episode is decided."""
        reached = self.task.reached(self._state)
        self._held = (self._held + 1) * reached
        solved = self._held >= self.task.required_hold(self._state)
        if solved.any():
            self._stage = np.minimum(self._stage + solved, self._goals.shape[1])
            self._held[solved] = 0
            self._success = self._stage == self._goals.shape[1]
            self._tell()
        return self._success | self.task.failed(self._state)

    def _restart(self, mask: Bool[np.ndarray, " worlds"]) -> None:
        seeds = [int(self.np_random.integers(2**31)) if wanted else 0 for wanted in mask]
        self._start(mask, seeds)
        self._observe_state()

    def _same_step(
        self, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        final_obs, final_info, ended = self._observation(), self._info(), self._ended.copy()
        self._restart(ended)
        info = self._info() | {"final_obs": final_obs, "final_info": final_info}
        info |= {"_final_obs": ended, "_final_info": ended}
        return self._observation(), reward, terminated, truncated, info

    def _observe_state(self) -> None:
        """Read the present out of the physics."""
        physics, scene = self.physics, self.scene
        qpos = physics.qpos
        position, rotation, self._jacobian = pose_and_jacobian(PANDA, qpos[:, :ARM_JOINTS])
        velocity = physics.qvel[:, scene.object_velocity_slice].reshape(self.num_envs, -1, 6)[..., :3]
        self._state = State(
            worlds=self._worlds,
            qpos=qpos,
            qvel=physics.qvel,
            mocap_pos=physics.mocap_pos,
            objects=qpos[:, scene.object_slice].reshape(self.num_envs, -1, 7),
            object_speed=(velocity * velocity).sum(-1) ** 0.5,
            ee_position=position,
            ee_rotation=rotation,
            opening=qpos[:, ARM_JOINTS] + qpos[:, ARM_JOINTS + 1],
            goal=self._goal,
            step=self._steps,
        )
        arranged = self.task.arrange(self._state, scene)
        if arranged is not None:
            physics.mocap_pos[:] = arranged

    def _observation(self) -> dict[str, np.ndarray]:
        state = self._state
        ee_pose = np.empty((self.num_envs, 7), np.float32)
        ee_pose[:, :3] = state.ee_position
        ee_pose[:, 3:] = matrix_to_quaternion(state.ee_rotation)
        target = self.task.target(state)
        objects = self.task.observe(state, self.scene)
        obs = {
            "ee_pose": ee_pose,
            "gripper": state.opening[:, None].astype(np.float32),
            "qpos": state.qpos[:, :ARM_JOINTS].astype(np.float32),
            **objects,
            **{f"to_{key}": row[:, -3:] for key, row in objects.items() if row.shape[1] > 3},
            "target_pos": target.astype(np.float32),
            "target_offset": (target - state.ee_position).astype(np.float32),
        }
        if self._renderer is not None:
            self.physics.forward()
            obs |= self._renderer.render(self.physics.poses)
        return obs

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success.copy(),
            "instruction": self.instructions,
            "solved": self._stage.copy(),
            "seed": tuple(self._episode_seeds),
        }


_LOWER_RAD, _UPPER_RAD = np.array(PANDA.lower_rad), np.array(PANDA.upper_rad)
_SCALE = np.array([POSITION_SCALE_M] * 3 + [ROTATION_SCALE_RAD] * 3)


def _space(rows: np.ndarray) -> gymnasium.spaces.Box:
    if rows.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, rows.shape[1:], np.uint8)
    return gymnasium.spaces.Box(-FARTHEST, FARTHEST, rows.shape[1:], np.float32)
