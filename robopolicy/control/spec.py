"""What a server announces of its policy."""

from robopolicy.types import PolicySpec

__all__ = ["ANNOUNCED", "PolicySpec"]

ANNOUNCED = ("chunk", "window", "history", "frame_stride", "control_dt", "execution", "provenance")
"""Fields of a spec that a server's metadata carries under their own names."""
