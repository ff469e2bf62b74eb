"""A 3Dconnexion SpaceMouse, read over USB by hidapi."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.operators.base import DEAD_ZONE, OperatorContext, ToolOperator

VENDORS = (0x256F, 0x046D)
"""USB vendors: 3Dconnexion, and Logitech, which sold older devices."""
FULL = 350.0
"""Reading of an axis at full deflection."""
TRANSLATION, ROTATION, BUTTONS = 1, 2, 3
"""Report IDs (first byte of a report); newer devices append the rotation to the report of the translation."""
GRIPPER_BIT, TAKE_OVER_BIT = 0, 1


@dataclass(frozen=True)
class SpacemouseOptions(Options):
    """Options of `spacemouse`: the right button takes over and hands back, the left one closes and opens the gripper.

    The operator looks along the x axis of the robot's base: pushing the cap away moves the tool along +x.
    """

    speed: float = option(0.3, "0 .. 1")
    """Share of a full action at full deflection; 1 is 0.05 m, or 0.5 rad, per control step."""


class Spacemouse:
    """The state of the cap and its buttons, from the device's reports.

    Args:
        options: options of `spacemouse`.
        device: an opened `hid.device` in non-blocking mode.
    """

    def __init__(self, options: SpacemouseOptions, device: Any) -> None:
        self.options, self._device = options, device
        self._axes, self._buttons = np.zeros(6), 0

    def read(self, t_s: float) -> tuple[Float[np.ndarray, "6"], int, int]:
        """See `ToolDevice`."""
        presses = [0, 0]
        while report := bytes(self._device.read(64)):
            count = (len(report) - 1) // 2
            numbers = struct.unpack_from(f"<{count}h", report, 1)
            if report[0] == TRANSLATION:
                axes = 6 if count >= 6 else 3
                self._axes[:axes] = numbers[:axes]
            elif report[0] == ROTATION:
                self._axes[3:] = numbers[:3]
            elif report[0] == BUTTONS:
                new = report[1] & ~self._buttons
                presses[0] += new >> TAKE_OVER_BIT & 1
                presses[1] += new >> GRIPPER_BIT & 1
                self._buttons = report[1]
        right, near, down = (self._axes.reshape(2, 3) / FULL).clip(-1.0, 1.0).T
        motion = np.stack([-near, -right, -down], axis=1).ravel()  # in the base frame of a robot seen from behind
        motion[np.abs(motion) < DEAD_ZONE] = 0.0
        return self.options.speed * motion, presses[0], presses[1]

    def close(self) -> None:
        """Close the device."""
        self._device.close()


@register("operator", "spacemouse", SpacemouseOptions)
def make_spacemouse(options: SpacemouseOptions, context: OperatorContext) -> ToolOperator:
    """A SpaceMouse on this machine.

    Raises:
        ConfigError: no SpaceMouse is connected.
    """
    try:
        import hid
    except ImportError:
        raise ImportError("a SpaceMouse needs hidapi; pip install 'robopolicy[spacemouse]'") from None
    devices = [each for vendor in VENDORS for each in hid.enumerate(vendor)]
    found = [each for each in devices if "space" in (each["product_string"] or "").lower()]
    if not found:
        raise ConfigError("--intervene spacemouse: none found; is it connected, and may this user read it (udev)?")
    device = hid.device()
    device.open_path(found[0]["path"])
    device.set_nonblocking(True)
    return ToolOperator(Spacemouse(options, device), context)
