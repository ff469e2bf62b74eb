"""The keys of the terminal that `robopolicy run` runs in."""

import math
import os
import select
import sys
import termios
import tty
from dataclasses import dataclass

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.operators.base import OperatorContext, ToolOperator

TAKE_OVER, GRIPPER = "t", " "
MOTIONS = ("ws", "ad", "rf", "uo", "ik", "jl")
"""The keys for + and - of each column of the tool's motion (x y z, then the rotation about x y z)."""


@dataclass(frozen=True)
class KeyboardOptions(Options):
    """Options of `keyboard`: t takes over and hands back, space closes and opens the gripper.

    w/s move the tool along x, a/d along y, r/f along z; u/o, i/k, j/l turn it about x, y, z.
    """

    speed: float = option(0.2, "0 .. 1")
    """Action that a key commands, 0 .. 1; 1 is 0.05 m, or 0.5 rad, per control step."""
    hold_s: float = option(0.2, "> 0")
    """Time for which one key press moves the tool [s]; the terminal repeats a key that is held down."""


class Keyboard:
    """The terminal of a file descriptor, in cbreak mode (without echo and line editing) until `close`.

    Raises:
        ConfigError: the descriptor is not a terminal.
    """

    def __init__(self, options: KeyboardOptions, descriptor: int) -> None:
        if not os.isatty(descriptor):
            raise ConfigError("--intervene keyboard: the standard input is not a terminal; run it in one")
        self.options, self._descriptor = options, descriptor
        self._before = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor)
        self._pressed_s = np.full((6, 2), -math.inf)

    def read(self, t_s: float) -> tuple[Float[np.ndarray, "6"], int, int]:
        """See `ToolDevice`."""
        keys = ""
        while select.select([self._descriptor], [], [], 0)[0]:
            typed = os.read(self._descriptor, 64)
            if not typed:
                raise OSError("the terminal was closed")
            keys += typed.decode(errors="ignore")
        for key in keys.lower():
            for column, pair in enumerate(MOTIONS):
                if key in pair:
                    self._pressed_s[column] = -math.inf
                    self._pressed_s[column, pair.index(key)] = t_s
        held = (t_s - self._pressed_s < self.options.hold_s).astype(float)
        return self.options.speed * (held[:, 0] - held[:, 1]), keys.count(TAKE_OVER), keys.count(GRIPPER)

    def close(self) -> None:
        """Restore the terminal's settings."""
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


@register("operator", "keyboard", KeyboardOptions)
def make_keyboard(options: KeyboardOptions, context: OperatorContext) -> ToolOperator:
    """The keys of the terminal."""
    return ToolOperator(Keyboard(options, sys.stdin.fileno()), context)
