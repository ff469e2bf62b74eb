"""Kinds of the robot family that need the simulator."""
