"""A gymnasium vector environment: N worlds of a task, one call a control step, on the CPU or on a device."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, UInt8

from robopolicy.control.arrays import copied, namespace
from robopolicy.sim.backend import Kind, make_physics
from robopolicy.sim.episodes import turns
from robopolicy.sim.physics import BatchPhysics, fault_names
from robopolicy.sim.pool import EpisodePool, Instructions
from robopolicy.sim.randomization import Randomization, RandomizationConfig
from robopolicy.sim.render import Renderer
from robopolicy.sim.scene import ARM_JOINTS, CAMERAS, PHYSICS_DT, build_scene
from robopolicy.sim.tasks import make_task
from robopolicy.sim.worlds import Worlds
from robopolicy.types import Array

FARTHEST = 1e3
"""Bound of the observation space: an object that fell off the table ends the episode long before it is so far [m]."""


class RobotVectorEnv(Worlds, VectorEnv):
    """N worlds of one task.

    Actions (N, 7) in [-1, 1]: displacement of the gripper x y z [0.05 m], rotation vector [0.5 rad], both in the base
    frame and relative to the present pose; then the gripper, -1 open, 1 closed. Values beyond are clipped.

    Observations are float32 rows, pictures uint8; `target_pos` and `target_offset`, the named object's position and the
    way there from the fingertips [m], are privileged; `to_<object>` tells the way to each object. Each world's episode is
    determined by its seed alone. With autoreset disabled (the default), a world whose episode ended goes on being
    simulated until it is reset with `options={"reset_mask": ...}`.

    With `physics="warp"` (the default on a CUDA device) all arrays are torch tensors on that device and no step waits for
    it: `info["instruction"]` is read from the device only when it is looked at, and worlds that are reset without seeds
    take episodes that were drawn and carried over ahead of time.

    Args:
        task: Name of the task; the error of a wrong one lists them.
        num_envs: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        physics: `batch` (the C engine, CPU), `warp` (mujoco_warp, CPU and CUDA), or `auto`: by device.
        cameras: Cameras whose pictures are part of the observation: `front`, `wrist`.
        image_size: Side of the pictures [pixels].
        depth: Also `<camera>_depth` (N, size, size), the distance along the camera's axis [m], 0 where there is nothing.
        segmentation: Also `<camera>_segmentation` (N, size, size), MuJoCo's number of the geom seen, -1 for none.
        shadows: Let lights cast shadows; several times slower.
        num_threads: Threads of `batch`; None takes one per CPU.
        physics_dt: Seconds of one physics step; must divide the control step of 0.05 s.
        autoreset_mode: What happens after an episode's end, as gymnasium names it; `NextStep` is for `batch` only.
        max_episode_steps: Time limit; None takes the task's.
        task_options: Keyword arguments of the task's class, such as `delay_steps` of `recall`.
        randomization: How episodes differ in what the task leaves alone.
        limits: Keep to the robot's limits, as the real-time loop does; False commands what an action asks for at once.
        render_mode: `rgb_array`: `render()` gives the `front` camera's pictures, which are then observed as well.
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        device: str = "cpu",
        physics: Kind = "auto",
        cameras: Sequence[str] = (),
        image_size: int = 64,
        depth: bool = False,
        segmentation: bool = False,
        shadows: bool = False,
        num_threads: int | None = None,
        physics_dt: float = PHYSICS_DT,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        task_options: Mapping[str, Any] | None = None,
        randomization: RandomizationConfig | None = None,
        limits: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected 1 or more")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is unknown; expected 'rgb_array' or None")
        if render_mode and "front" not in cameras:
            cameras = (*cameras, "front")
        if unknown := [name for name in cameras if name not in CAMERAS]:
            raise ValueError(f"no camera {unknown[0]!r} in the scene; it has: {', '.join(CAMERAS)}")
        made, changes = make_task(task, **(task_options or {})), Randomization(randomization)
        self.num_envs = num_envs
        self.cameras = tuple(cameras)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": ["rgb_array"], "render_fps": 20}
        self.render_mode = render_mode
        scene = build_scene(made.parts, physics_dt)
        worlds = make_physics(scene, num_envs, physics, device, num_threads, bool(cameras), changes.fields)
        renderer = None
        if cameras:
            renderer = Renderer(worlds, cameras, image_size, depth=depth, segmentation=segmentation, shadows=shadows)
        super().__init__(made, worlds, max_episode_steps or made.max_episode_steps, renderer, changes, limits)
        self.on_device = namespace(worlds.qpos) is not np
        """Whether arrays are torch tensors."""
        if self.on_device and self.autoreset_mode == AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset NextStep needs physics 'batch'; with 'warp' choose SameStep or Disabled")
        self._pool: EpisodePool | None = None
        self._ended = self._integers(num_envs) > 0
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (ARM_JOINTS,), np.float32)
        self.single_observation_space = gymnasium.spaces.Dict(
            {key: _space(value) for key, value in self._observation().items()}
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as its arguments and the state of its worlds: the engine's own memory can't be.

        Raises:
            TypeError: the worlds are on a device.
        """
        if not isinstance(self.physics, BatchPhysics):
            raise TypeError("only environments with physics 'batch' can be pickled or copied; this one has 'warp'")
        records = {name: value.copy() for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        state = {"physics": self.physics.snapshot(), "records": records, "sentences": self.sentences}
        return partial(RobotVectorEnv, **self._arguments), (), state | {"_np_random": self._np_random}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        cast(BatchPhysics, self.physics).restore(state["physics"])
        for name, values in state["records"].items():
            getattr(self, name)[...] = values
        self.sentences, self._np_random, self._told = state["sentences"], state["_np_random"], None
        self._observe_state()

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        return self.scene.control_dt

    @property
    def episode_figures(self) -> tuple[str, ...]:
        """Names in `info` that say how far an episode came."""
        return ("solved", "limited")

    @property
    def model_xml(self) -> str:
        """The scene as one MJCF text."""
        return self.scene.xml

    @property
    def instructions(self) -> tuple[str, ...] | Instructions:
        """What is asked of each world at present."""
        if self.on_device:
            return Instructions(self.instruction_id.clone(), self.sentences.texts)
        if self._told is None:
            self._told = tuple(self.sentences.texts[number] for number in self.instruction_id.tolist())
        return self._told

    def states(self) -> Float[Array, "worlds nq_plus_nv"]:
        """Positions and velocities of every world, side by side; a copy."""
        return self._xp.concatenate([self.physics.qpos, self.physics.qvel], -1)

    def faults(self, world: int) -> tuple[str, ...]:
        """What broke in this world's present episode; empty for a sound simulation."""
        return fault_names(int(self.fault[world]))

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start new episodes: in all worlds, or where `options["reset_mask"]` (N,) is True.

        Args:
            seed: One seed for each world, or one from which they count up; None goes on drawing.
            options: `reset_mask`, the worlds to reset; the others are left as they are.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if isinstance(seed, (int, np.integer)):
            self._np_random, self._np_random_seed = seeding.np_random(int(seed))
            self._pool = None
            seed = [int(seed) + world for world in range(self.num_envs)]
        if seed is not None and len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} worlds; give one each, or a single number")
        if self.on_device:
            mask = self._xp.as_tensor(mask, device=self.physics.qpos.device).bool()
            self._restart(mask) if seed is None else self._start_all(mask, list(seed))
        else:
            mask = np.asarray(mask, bool)
            self._start(mask, self._seeds(seed, mask))
        return self._observation(), self._info()

    def step(self, actions: Float[Array, "worlds 7"]) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """One control step of all worlds: observation, reward (1 at success), terminated, truncated, info."""
        restarted = self._ended.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else None
        terminated = self.act(actions)
        truncated = self.out_of_time & ~terminated
        reward = self._xp.asarray(self._success, dtype=self._xp.float64)
        self._ended[:] = terminated | truncated
        if restarted is not None and restarted.any():
            self._restart(restarted)
            terminated[restarted] = truncated[restarted] = False
            reward[restarted] = 0.0
        if self.autoreset_mode == AutoresetMode.SAME_STEP and (self.on_device or self._ended.any()):
            return self._same_step(reward, terminated, truncated)
        return self._observation(), reward, terminated, truncated, self._info()

    def render(self) -> tuple[UInt8[np.ndarray, "height width 3"], ...] | None:
        """The `front` camera's picture of each world; None without `render_mode`."""
        if self.render_mode is None or self._renderer is None:
            return None
        return tuple(torch.as_tensor(self._renderer.render()["front"]).cpu().numpy())

    def _same_step(
        self, reward: Array, terminated: Array, truncated: Array
    ) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        final_obs, final_info, ended = self._observation(), self._info(), terminated | truncated
        self._restart(ended)
        info = self._info() | {"final_obs": final_obs, "final_info": final_info}
        info |= {"_final_obs": ended, "_final_info": ended}
        return self._observation(), reward, terminated, truncated, info

    def _seeds(self, seeds: Sequence[int | None] | None, mask: Bool[np.ndarray, " worlds"]) -> list[int]:
        """A seed for each world in `mask`, in order; drawn where none is given."""
        given = seeds if seeds is not None else [None] * self.num_envs
        return [
            int(self.np_random.integers(2**31)) if each is None else int(each)
            for each, wanted in zip(given, mask, strict=True)
            if wanted
        ]

    def _start(self, mask: Bool[np.ndarray, " worlds"], seeds: Sequence[int]) -> None:
        """Draw and set up the episodes of the worlds in `mask`, a seed each."""
        if len(seeds):
            self.set_up(mask, self.draw(seeds), turns(mask, 0))
        self._ended[mask] = False

    def _start_all(self, mask: Array, seeds: Sequence[int | None]) -> None:
        """The same on a device, where the host does not know which worlds are in `mask`."""
        drawn = [int(self.np_random.integers(2**31)) if each is None else int(each) for each in seeds]
        self.set_up(mask, self.draw(drawn), self._worlds)
        self._ended &= ~mask

    def _restart(self, mask: Bool[Array, " worlds"]) -> None:
        """New episodes, of seeds that the environment draws itself."""
        if not self.on_device:
            return self._start(mask, self._seeds(None, mask))
        if self._pool is None:
            self._pool = EpisodePool(self.draw, self.np_random, self.num_envs)
        self.set_up(mask, self._pool.episodes, self._pool.take(mask))
        self._ended &= ~mask
        return None

    def _info(self) -> dict[str, Any]:
        records = {
            "success": self._success,
            "solved": self._stage,
            "limited": self.limited,
            "seed": self._seed,
            "fault": self.fault,
            "instruction_id": self.instruction_id,
        }
        # On the host an array, as gymnasium's wrappers expect of every value in a vector environment's info.
        texts = self.instructions if self.on_device else np.array(self.instructions, dtype=object)
        return {key: copied(record) for key, record in records.items()} | {"instruction": texts}


def _space(rows: Array) -> gymnasium.spaces.Box:
    shape, kind = tuple(rows.shape[1:]), str(rows.dtype).rpartition(".")[2]
    if kind == "uint8":
        return gymnasium.spaces.Box(0, 255, shape, np.uint8)
    if kind == "int32":
        return gymnasium.spaces.Box(-1, np.iinfo(np.int32).max, shape, np.int32)
    return gymnasium.spaces.Box(-FARTHEST, FARTHEST, shape, np.float32)
