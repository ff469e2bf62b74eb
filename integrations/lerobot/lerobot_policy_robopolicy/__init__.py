"""robopolicy's policies in LeRobot. LeRobot imports this package by its name, which registers `--policy.type=robopolicy`."""

from lerobot_policy_robopolicy.configuration_robopolicy import RobopolicyConfig

__all__ = ["RobopolicyConfig"]
