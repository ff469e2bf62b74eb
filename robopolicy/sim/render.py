"""Pictures of all worlds and cameras in one call, by `mujoco_warp`'s ray tracer; no OpenGL, no display.

On the CPU the poses computed by the C engine are copied into warp's arrays, so that no physics kernel is compiled.
Demonstrations and rollouts must share this renderer: its pictures differ from OpenGL's.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from robopolicy.sim.scene import Scene

NAME = "mujoco_warp ray tracer"
"""What a demo file says made its pictures."""
BACKGROUND = (0.1, 0.1, 0.12, 1.0)


class Renderer:
    """Ray-traces RGB pictures of N worlds.

    Args:
        scene: The model.
        num_worlds: N.
        cameras: Names of the cameras to render.
        image_size: Side of the pictures [pixels].
        shadows: Let lights cast shadows; several times slower.

    Raises:
        ModuleNotFoundError: `mujoco_warp` is not installed; the message says which extra brings it.
    """

    def __init__(
        self, scene: Scene, num_worlds: int, cameras: Sequence[str], image_size: int, shadows: bool = False
    ) -> None:
        try:
            import warp

            warp.config.log_level = warp.LOG_WARNING
            import mujoco_warp
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"pictures need {error.name}; pip install 'robopolicy[sim]'") from error
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self._warp = mujoco_warp
        self._order = sorted(self.cameras, key=lambda name: scene.model.camera(name).id)
        with warp.ScopedDevice("cpu"):
            self._model = mujoco_warp.put_model(scene.model)
            self._data = mujoco_warp.make_data(scene.model, nworld=num_worlds, nconmax=1, njmax=1)
            self._context = mujoco_warp.create_render_context(
                scene.model,
                nworld=num_worlds,
                cam_res=(image_size, image_size),
                render_rgb=True,
                render_depth=False,
                render_seg=False,
                use_textures=False,
                use_shadows=shadows,
                enabled_geom_groups=[1],
                cam_active=list(self._order),
                background_color=BACKGROUND,
                enable_specular=False,
                enable_emission=False,
            )
        self._scoped_device = warp.ScopedDevice
        self._pixels = self._context.rgb_data.numpy().view(np.uint8)
        self._poses = {name: getattr(self._data, name).numpy() for name in POSES}

    def render(
        self, poses: Mapping[str, Float[np.ndarray, "worlds ..."]]
    ) -> dict[str, UInt8[np.ndarray, "worlds size size 3"]]:
        """One picture (N, size, size, 3) per camera, right way up, of worlds whose poses are given by MuJoCo's names."""
        for name, array in self._poses.items():
            array[:] = poses[name].reshape(array.shape)
        with self._scoped_device("cpu"):
            self._warp.refit_bvh(self._model, self._data, self._context)
            self._warp.render(self._model, self._data, self._context)
        shape = (len(self._pixels), len(self._order), self.image_size, self.image_size, 4)
        pictures = self._pixels.reshape(shape)[..., 2::-1]
        return {name: pictures[:, self._order.index(name)].copy() for name in self.cameras}


POSES = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""MuJoCo fields that a picture depends on."""
