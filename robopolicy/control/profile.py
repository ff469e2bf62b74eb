"""A robot's limits and kinematics as a YAML file: shipped for the Panda and the FR3, or the user's own."""

from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jsonargparse import ArgumentParser

from robopolicy.components import refuse_import_paths
from robopolicy.control.kinematics import Arm

PROFILES = Path(__file__).parent / "profiles"
_LIMITS = ("position_lower_rad", "position_upper_rad", "velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3")


@dataclass(frozen=True)
class RobotProfile:
    """Limits of one robot. A sequence has one number per joint; lengths are those of the tool frame in the base frame.

    Raises:
        ValueError: a limit is missing, has the wrong length or sign, or a lower one is not below its upper one.
    """

    name: str
    joint_names: tuple[str, ...]
    """As the robot's driver calls them."""
    position_lower_rad: tuple[float, ...]
    position_upper_rad: tuple[float, ...]
    """Limits of each joint, which no command crosses [rad]."""
    velocity_rad_s: tuple[float, ...]
    acceleration_rad_s2: tuple[float, ...]
    jerk_rad_s3: tuple[float, ...]
    """Largest derivatives of the commands."""
    home_rad: tuple[float, ...]
    """Where an episode begins."""
    soft_margin_rad: float = 0.1
    """Targets stay this far inside the limits of each joint [rad]."""
    joint_step_rad: float = 0.2
    """Largest distance of a target from where the joint is [rad]."""
    first_jump_rad: float = 0.2
    """Largest distance of the very first target from where the joint is [rad]; beyond it the start is refused."""
    following_rad: float = 0.3
    """Largest distance of a joint from where it was sent [rad]; beyond it the robot is stopped as blocked."""
    opening_m: float = 0.08
    """Distance between the fingers when the gripper is open [m]."""
    gripper_opens: Literal["first", "second"] = "first"
    """Which of the two gripper values of the demos' action spec opens the gripper; of a continuous one, -1 is the first."""
    kinematics: Arm | None = None
    """The arm's geometry; None: joint targets only, and no Cartesian limit."""
    speed_m_s: float | None = None
    rotation_speed_rad_s: float | None = None
    """Largest speed of the tool [m/s], [rad/s]."""
    workspace_lower_m: tuple[float, ...] | None = None
    workspace_upper_m: tuple[float, ...] | None = None
    """Corners of the box that the tool stays in [m]."""
    step_m: float = 0.075
    step_rad: float = 0.15
    """Largest displacement of the tool in one control step [m], [rad]."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, float)]
            self._require(bool(np.isfinite(numbers).all()), f"{field.name} is {value}; expected finite numbers")
        self._check_joints()
        self._check_tool()

    def _check_joints(self) -> None:
        for name in (*_LIMITS, "home_rad"):
            found = len(getattr(self, name))
            self._require(found == self.joints, f"{name} has {found} entries for {self.joints} joints; give one each")
        for name in ("velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3"):
            self._require(min(getattr(self, name)) > 0, f"{name} is {getattr(self, name)}; expected positive numbers")
        lower, upper = (limits.tolist() for limits in self.soft_limits_rad)
        for joint, low, high, home in zip(self.joint_names, lower, upper, self.home_rad, strict=True):
            self._require(low < high, f"{joint}: nothing is left between its limits less the soft margin")
            self._require(low <= home <= high, f"{joint}: home {home} rad is not within {low:.4f} .. {high:.4f} rad")

    def _check_tool(self) -> None:
        arm, box = self.kinematics, (self.workspace_lower_m, self.workspace_upper_m)
        self._require(
            arm is None or arm.joints == self.joints,
            f"kinematics have {arm.joints if arm else 0} joints for {self.joints} joint names; give one each",
        )
        self._require(
            arm is not None or not any((*box, self.speed_m_s, self.rotation_speed_rad_s)),
            "limits of the tool's speed or workspace need `kinematics`",
        )
        self._require((box[0] is None) == (box[1] is None), "give both corners of the workspace, or none")
        if box[0] is not None and box[1] is not None:
            fits = len(box[0]) == len(box[1]) == 3 and all(np.less(box[0], box[1]))
            self._require(fits, f"workspace {box[0]} .. {box[1]} is no box; give x y z of its lower and upper corner")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `profile_from_dict` reads them back."""
        return asdict(self)

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self.joint_names)

    @property
    def arm(self) -> Arm | None:
        """The kinematics, where known."""
        return self.kinematics

    @cached_property
    def soft_limits_rad(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of targets (joints,) each [rad]."""
        lower = np.asarray(self.position_lower_rad) + self.soft_margin_rad
        return lower, np.asarray(self.position_upper_rad) - self.soft_margin_rad

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"{self.name}: {message}")


def read_profile(source: str | Path) -> RobotProfile:
    """A shipped profile by name (`panda`, `fr3`), or any YAML file with the fields of `RobotProfile`.

    Raises:
        ValueError: no such profile, or a field is unknown, missing or wrong.
    """
    path = PROFILES / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        shipped = ", ".join(sorted(known.stem for known in PROFILES.glob("*.yaml")))
        raise ValueError(f"no robot profile {str(source)!r}; shipped are: {shipped}; or give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"robot profile {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"robot profile {path}: expected a mapping of fields, found {type(values).__name__}")
    return profile_from_dict(values, f"robot profile {path}")


def profile_from_dict(values: Mapping[str, Any], source: str = "robot profile") -> RobotProfile:
    """A profile from plain values, such as those that a robot sends over the network."""
    refuse_import_paths(values, source)
    if not isinstance(values.get("kinematics") or {}, Mapping):  # the parser would import what a string there names
        raise ValueError(f"{source}: kinematics must be a mapping of fields, got {values['kinematics']!r}")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(RobotProfile, None)
    try:
        return RobotProfile(**vars(parser.instantiate(parser.parse_object(dict(values)))))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from None
