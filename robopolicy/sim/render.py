"""Renders all worlds and cameras in one call with `mujoco_warp`'s ray tracer; needs neither OpenGL nor a display.

The renderer works with both kinds of physics. Worlds simulated by Warp are rendered from Warp's own arrays. Poses computed
by the C engine are copied into Warp arrays, so that no physics kernel has to be compiled. Use the same renderer for
demonstrations and rollouts: its images differ from OpenGL's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from robopolicy.sim.physics import BatchPhysics, Physics
from robopolicy.sim.randomization import LOOKS
from robopolicy.types import Array

NAME = "mujoco_warp ray tracer"
"""The renderer's name in demo files."""
BACKGROUND = (0.1, 0.1, 0.12, 1.0)
"""RGBA, 0 .. 1."""
POSES = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""Fields of MuJoCo's data that an image depends on."""


class Renderer:
    """Ray-traces images of N worlds.

    Args:
        physics: The worlds.
        cameras: Names of the cameras to render.
        image_size: Height and width of the images [pixels].
        depth: Also render the distance along the camera's axis.
        segmentation: Also render which geom is seen.
        shadows: Let lights cast shadows; several times slower.

    Raises:
        ModuleNotFoundError: `mujoco_warp` is not installed; the message names the extra that installs it.
    """

    def __init__(
        self,
        physics: Physics,
        cameras: Sequence[str],
        image_size: int,
        *,
        depth: bool = False,
        segmentation: bool = False,
        shadows: bool = False,
    ) -> None:
        try:
            import mujoco_warp
            from warp import to_torch

            from robopolicy.sim.warp_physics import Replay, WarpPhysics, WarpStage
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"images need {error.name}; pip install 'robopolicy[sim]'") from error
        self.cameras = tuple(cameras)
        self._warp = mujoco_warp
        self._physics, model = physics, physics.scene.model
        # The render context orders cameras by id, not as given.
        self._order = sorted(self.cameras, key=lambda name: model.camera(name).id)
        # Name -> (array that is rendered, array of the C engine that is copied into it); empty with Warp physics.
        self._copied: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if isinstance(physics, BatchPhysics):
            looks = [name for name in LOOKS if name in physics.fields]
            self._stage = WarpStage(physics.scene, physics.num_worlds, "cpu", looks, nconmax=1, njmax=1)
            self._copied = {name: (self._stage.tensor(name).numpy(), physics.poses[name]) for name in POSES}
            self._copied |= {name: (self._stage.fields[name].numpy(), physics.fields[name]) for name in looks}
            self._draw = Replay(self._stage, self._trace)
        else:
            assert isinstance(physics, WarpPhysics)
            self._stage = physics.stage
            self._draw = Replay(self._stage, physics.show, self._trace)
        with self._stage.on_device():
            self._context: Any = mujoco_warp.create_render_context(
                model,
                nworld=physics.num_worlds,
                cam_res=(image_size, image_size),
                render_rgb=True,
                render_depth=depth,
                render_seg=segmentation,
                use_textures=False,
                use_shadows=shadows,
                enabled_geom_groups=[1],
                cam_active=list(self._order),
                background_color=BACKGROUND,
                enable_specular=False,
                enable_emission=False,
            )
        shape = (physics.num_worlds, len(self._order), image_size, image_size)
        # Suffix of the key -> the ray tracer's buffer (N, cameras, size, size, channels), overwritten by the next call.
        self._buffers = {"": to_torch(self._context.rgb_data).view(torch.uint8).view(*shape, 4)[..., :3]}
        if depth:
            self._buffers["_depth"] = to_torch(self._context.depth_data).view(shape)
        if segmentation:
            self._buffers["_segmentation"] = to_torch(self._context.seg_data).view(*shape, 2)[..., 0]

    def render(self) -> dict[str, Array]:
        """Camera -> RGB images (N, size, size, 3), uint8, upright, of the current state.

        With `depth` also `<camera>_depth` (N, size, size) [m], with `segmentation` `<camera>_segmentation`, int32.
        NumPy arrays for `BatchPhysics`, else tensors on the physics' device; the next call does not overwrite them.
        """
        if self._copied:
            self._physics.forward()
        for mine, theirs in self._copied.values():
            mine[:] = theirs.reshape(mine.shape)
        self._draw()
        seen = {}
        for suffix, buffer in self._buffers.items():
            for camera in self.cameras:
                image = buffer[:, self._order.index(camera)]
                # The ray tracer writes BGR; `flip` makes it RGB and copies.
                seen[camera + suffix] = image.clone() if suffix else image.flip(-1)
        return {key: image.numpy() for key, image in seen.items()} if self._copied else seen

    def _trace(self) -> None:
        self._warp.refit_bvh(self._stage.model, self._stage.data, self._context)
        self._warp.render(self._stage.model, self._stage.data, self._context)
