"""A gymnasium vector environment: N worlds of a task, one call per control step, on the CPU or a CUDA device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, UInt8

from robopolicy.arrays import copied, namespace
from robopolicy.sim.episodes import EpisodePool, Instructions, turns
from robopolicy.sim.physics import BatchPhysics, Kind, fault_names, make_physics
from robopolicy.sim.randomization import Randomization
from robopolicy.sim.render import Renderer
from robopolicy.sim.scene import PHYSICS_DT, ROBOTS, SceneRobot, build_scene
from robopolicy.sim.tasks import make_task
from robopolicy.sim.worlds import Worlds
from robopolicy.types import Array

FARTHEST = 1e3
"""Bound of the observation space [m]: an object that falls off the table ends the episode long before it is so far away."""


@dataclass(frozen=True)
class EnvOptions:
    """Options of an environment; `gymnasium.make` and `RobotVectorEnv` take them as keyword arguments."""

    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:<n>`."""
    physics: Kind = "auto"
    """`batch` (MuJoCo's C engine, CPU), `warp` (mujoco_warp, CPU and CUDA), or `auto`: by device."""
    cameras: Sequence[str] = ()
    """Cameras whose images are part of the observation, such as `front` and `wrist`."""
    image_size: int = 64
    """Side of the square images [pixels]."""
    depth: bool = False
    """Also `<camera>_depth` (N, size, size): distance along the camera's axis [m], 0 where nothing is hit."""
    segmentation: bool = False
    """Also `<camera>_segmentation` (N, size, size): MuJoCo's number of the geom seen, -1 where nothing is hit."""
    shadows: bool = False
    """Lights cast shadows; several times slower."""
    num_threads: int | None = None
    """Threads of `batch`; None: one per CPU."""
    physics_dt: float = PHYSICS_DT
    """Seconds of one physics step; must divide the control step."""
    autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED
    """What happens at an episode's end, as gymnasium names it; `NextStep` is for `batch` only."""
    max_episode_steps: int | None = None
    """Time limit [control steps]; None: the task's."""
    task_options: Mapping[str, Any] | None = None
    """Options of the task, such as `delay_steps` of `recall`."""
    randomization: Randomization | None = None
    """Domain randomization, beyond what the task itself draws."""
    limits: bool = True
    """Apply the robot's limits, as the real-time loop does; False: command every action unchanged."""
    render_mode: str | None = None
    """`rgb_array`: `render()` returns the `front` camera's images, which are then observed as well."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "EnvOptions":
        """These options; unknown ones are refused.

        Raises:
            TypeError: there is no such option; those that exist are listed.
            ValueError: the render mode is unknown.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise TypeError(f"the environment has no option {unknown[0]!r}; it has: {', '.join(known)}")
        made = cls(**values)
        if made.render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {made.render_mode!r} is unknown; expected 'rgb_array' or None")
        return made

    def cameras_of(self, robot: SceneRobot) -> tuple[str, ...]:
        """The cameras that are observed, `front` among them where it is rendered.

        Raises:
            ValueError: the robot's scene has no such camera.
        """
        cameras = tuple(self.cameras)
        if self.render_mode and "front" not in cameras:
            cameras = (*cameras, "front")
        if unknown := [name for name in cameras if name not in robot.cameras]:
            raise ValueError(f"no camera {unknown[0]!r} in the scene; it has: {', '.join(robot.cameras)}")
        return cameras


class RobotVectorEnv(Worlds, VectorEnv):
    """N worlds of one task.

    Actions (N, 7) in [-1, 1]: displacement of the gripper x y z [0.05 m], rotation vector [0.5 rad], both in the base
    frame and relative to the present pose; then the gripper, -1 open, 1 closed. Values beyond are clipped. Tasks of the
    two-arm robot take (N, 14), for each arm six joint positions [rad] and the gripper, 1 open, 0 closed.

    Observations are float32 rows, images uint8. `to_<object>` is the object's position relative to the gripper;
    `target_pos` is the position of the named object, `goal_pos` where it should be brought, `target_offset` and
    `goal_offset` the same relative to the fingertips [m]; all four are privileged. The seed alone
    determines an episode. With autoreset disabled (the default), a world whose episode ended is simulated further until it is
    reset with `options={"reset_mask": ...}`.

    With `physics="warp"` (the default on a CUDA device) all arrays are torch tensors on that device and no step waits for
    it: `info["instruction"]` is read from the device only when it is accessed, and worlds that are reset without seeds
    take episodes that were drawn and copied to the device ahead of time.

    Args:
        task: name of the task; `robopolicy components task` lists them.
        num_envs: N.
        options: the fields of `EnvOptions`.

    Raises:
        TypeError: there is no such option; those that exist are listed.
        ValueError: an option's value can't be used.
    """

    episode_figures = ("solved", "limited")
    """Names in `info` of the figures that are kept for each episode."""

    def __init__(self, task: str, num_envs: int = 1, **options: Any) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected 1 or more")
        self.options = given = EnvOptions.of(options)
        made, changes = make_task(task, **(given.task_options or {})), given.randomization or Randomization()
        self.num_envs, self.cameras = num_envs, given.cameras_of(ROBOTS[made.robot])
        self.autoreset_mode, self.render_mode = AutoresetMode(given.autoreset_mode), given.render_mode
        scene = build_scene(made.parts, given.physics_dt, made.robot)
        self.metadata = {
            "autoreset_mode": self.autoreset_mode,
            "render_modes": ["rgb_array"],
            "render_fps": round(1 / scene.control_dt),
        }
        worlds = make_physics(
            scene, num_envs, given.physics, given.device, given.num_threads, bool(self.cameras), changes.fields
        )
        shown = {name: getattr(given, name) for name in ("depth", "segmentation", "shadows")}
        renderer = Renderer(worlds, self.cameras, given.image_size, **shown) if self.cameras else None
        steps = given.max_episode_steps or made.max_episode_steps
        super().__init__(made, worlds, steps, renderer, changes, given.limits)
        self.on_device = namespace(worlds.qpos) is not np
        """Whether arrays are torch tensors."""
        if self.on_device and self.autoreset_mode == AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset NextStep needs physics 'batch'; with 'warp' choose SameStep or Disabled")
        self._pool: EpisodePool | None = None
        self._ended = np.zeros(num_envs, bool)  # for NextStep: worlds that the next step restarts
        self.single_action_space = _action_space(scene.robot)
        self.single_observation_space = gymnasium.spaces.Dict(
            {key: _space(value) for key, value in self._observation().items()}
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy hold its arguments and the state of its worlds: the engine's own memory can't be copied.

        Raises:
            TypeError: the worlds are on a device.
        """
        if not isinstance(self.physics, BatchPhysics):
            raise TypeError("only environments with physics 'batch' can be pickled or copied; this one has 'warp'")
        records = {name: value.copy() for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        state = {"physics": self.physics.snapshot(), "records": records, "sentences": self.sentences}
        made = partial(RobotVectorEnv, self.task.name, self.num_envs, **vars(self.options))
        return made, (), state | {"_np_random": self._np_random}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        cast(BatchPhysics, self.physics).restore(state["physics"])
        for name, values in state["records"].items():
            getattr(self, name)[...] = values
        self.sentences, self._np_random, self._instructions = state["sentences"], state["_np_random"], None
        self._observe_state()

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        return self.scene.control_dt

    @property
    def instructions(self) -> tuple[str, ...] | Instructions:
        """The present instruction of each world."""
        if self.on_device:
            return Instructions(self.instruction_id.clone(), self.sentences.texts)
        if self._instructions is None:
            self._instructions = tuple(self.sentences.texts[number] for number in self.instruction_id.tolist())
        return self._instructions

    def states(self) -> Float[Array, "worlds nq_plus_nv"]:
        """Positions and velocities of every world, side by side; a copy."""
        return self._xp.concatenate([self.physics.qpos, self.physics.qvel], -1)

    def faults(self, info: Mapping[str, Any], world: int) -> tuple[str, ...]:
        """Faults of the simulation in this world's episode; empty if there were none."""
        return fault_names(int(info["fault"][world]))

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start new episodes: in all worlds, or where `options["reset_mask"]` (N,) is True.

        Args:
            seed: One seed for each world, or one from which they count up; None draws further seeds.
            options: `reset_mask`, the worlds to reset; the others stay as they are.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if isinstance(seed, (int, np.integer)):
            self._np_random, self._np_random_seed = seeding.np_random(int(seed))
            self._pool = None
            seed = [int(seed) + world for world in range(self.num_envs)]
        if seed is not None and len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} worlds; give one each, or a single number")
        if self.on_device:
            self._start(self._xp.as_tensor(mask, device=self.physics.qpos.device).bool(), seed)
        else:
            self._start(np.asarray(mask, bool), seed)
        return self._observation(), self._info()

    def step(
        self, actions: Float[Array, "worlds width"]
    ) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """One control step of all worlds: observation, reward (1 at success), terminated, truncated, info."""
        terminated = self.act(actions)
        truncated = self.out_of_time & ~terminated
        reward = self._xp.asarray(self.succeeded, dtype=self._xp.float64)
        final = {}
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            if (restarted := self._ended.copy()).any():
                self._start(restarted)
                terminated[restarted] = truncated[restarted] = False
                reward[restarted] = 0.0
            self._ended[:] = terminated | truncated
        elif self.autoreset_mode == AutoresetMode.SAME_STEP:
            ended = terminated | truncated
            if self.on_device or ended.any():
                final = {"final_obs": self._observation(), "final_info": self._info()}
                final |= {"_final_obs": ended, "_final_info": ended}
                self._start(ended)
        return self._observation(), reward, terminated, truncated, self._info() | final

    def render(self) -> tuple[UInt8[np.ndarray, "height width 3"], ...] | None:
        """The `front` camera's image (height, width, 3) of each world; None without `render_mode`."""
        if self.render_mode is None or self._renderer is None:
            return None
        return tuple(torch.as_tensor(self._renderer.render()["front"]).cpu().numpy())

    def _start(self, mask: Bool[Array, " worlds"], seeds: Sequence[int | None] | None = None) -> None:
        """Begin an episode in each world of `mask`; seeds, one for each world, are drawn where they are None."""
        if self.on_device and seeds is None:
            self._pool = self._pool or EpisodePool(self.draw, self.np_random, self.num_envs)
            self.set_up(mask, self._pool.episodes, self._pool.take(mask))
            return
        seeds = [None] * self.num_envs if seeds is None else list(seeds)
        if not self.on_device:  # on a device, the host does not know which worlds are in `mask`
            seeds = [seed for seed, chosen in zip(seeds, mask, strict=True) if chosen]
            self._ended[mask] = False
        drawn = [int(self.np_random.integers(2**31)) if seed is None else int(seed) for seed in seeds]
        if drawn:
            self.set_up(mask, self.draw(drawn), self._worlds if self.on_device else turns(mask, 0))

    def _info(self) -> dict[str, Any]:
        records = {
            "success": self.succeeded,
            "solved": self.solved,
            "limited": self.limited,
            "seed": self._seed,
            "fault": self.fault,
            "instruction_id": self.instruction_id,
        }
        if not self.on_device and (progress := self.task.progress(self.state)) is not None:
            records["progress"] = progress
        # On the host an array, as gymnasium's wrappers expect of every value in a vector environment's info.
        texts = self.instructions if self.on_device else np.array(self.instructions, dtype=object)
        return {key: copied(record) for key, record in records.items()} | {"instruction": texts}


def _action_space(robot: SceneRobot) -> gymnasium.spaces.Box:
    """[-1, 1], or where actions are joint positions their limits [rad] and the ends of the grippers."""
    spec, profile = robot.actions, robot.profile
    low, high = np.full(spec.width, -1.0), np.full(spec.width, 1.0)
    if spec.kind == "absolute":
        joints = list(spec.joint_columns)
        low[joints], high[joints] = profile.position_lower_rad, profile.position_upper_rad
        for column, first, second in spec.gripper_ends:
            low[column], high[column] = min(first, second), max(first, second)
    return gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _space(rows: Array) -> gymnasium.spaces.Box:
    shape, kind = tuple(rows.shape[1:]), str(rows.dtype).rpartition(".")[2]
    if kind == "uint8":
        return gymnasium.spaces.Box(0, 255, shape, np.uint8)
    if kind == "int32":
        return gymnasium.spaces.Box(-1, np.iinfo(np.int32).max, shape, np.int32)
    return gymnasium.spaces.Box(-FARTHEST, FARTHEST, shape, np.float32)
