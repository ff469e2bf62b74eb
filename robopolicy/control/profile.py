"""A robot's limits and kinematics as a YAML file: shipped for several arms, made by `robopolicy profile`, or the user's own."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.collision import Capsule, LinkDistances
from robopolicy.control.kinematics import Arm
from robopolicy.options import options_of, read_yaml, refuse_import_paths

PROFILES = Path(__file__).parent / "profiles"
_LIMITS = ("position_lower_rad", "position_upper_rad", "velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3")


@dataclass(frozen=True)
class RobotProfile:
    """Limits of one robot. A sequence has one number per joint; Cartesian limits are those of the tool in the base frame.

    A robot of several arms has `arms`, whose joints and grippers are concatenated in this order. See `of_arms`.

    Raises:
        ValueError: a limit is missing, has the wrong length or sign, or a lower one is not below its upper one.
    """

    name: str
    joint_names: tuple[str, ...]
    """Joint names, as the robot's driver uses them."""
    position_lower_rad: tuple[float, ...]
    position_upper_rad: tuple[float, ...]
    """Position limits of each joint [rad]; no command exceeds them."""
    velocity_rad_s: tuple[float, ...]
    acceleration_rad_s2: tuple[float, ...]
    jerk_rad_s3: tuple[float, ...]
    """Largest velocity, acceleration and jerk of the commanded joint positions."""
    home_rad: tuple[float, ...]
    """Joint positions at the beginning of an episode [rad]."""
    soft_margin_rad: float = 0.1
    """Targets stay this far inside the limits of each joint [rad]."""
    joint_step_rad: float = 0.2
    """Largest distance of a target from the measured joint position [rad]."""
    first_jump_rad: float = 0.2
    """Largest distance of the first target from the measured joint position [rad]; beyond it the start is refused."""
    following_rad: float = 0.3
    """Largest distance of a joint from its commanded position [rad]; beyond it the robot is stopped as blocked."""
    opening_m: float = 0.08
    """Distance between the fingers when the gripper is open [m]; 0: no gripper."""
    gripper_opens: Literal["first", "second"] = "first"
    """Which of the two gripper values of the demos' action spec opens the gripper."""
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
    capsules: tuple[Capsule, ...] = ()
    """Capsules that cover the links, for `collision_margin_m`; `robopolicy profile` takes them from the URDF or MJCF file."""
    collision_margin_m: float | None = None
    """Smallest distance between links that are not adjacent, and between two arms [m]; None: no limit."""
    collision_ignored: tuple[tuple[int, int], ...] = ()
    """Pairs of links that are not compared, such as those of a wrist, which always overlap."""
    base_velocity: tuple[float, ...] = ()
    base_acceleration: tuple[float, ...] = ()
    """Limits of a mobile base in each of its directions, such as forward [m/s, m/s2] and turning [rad/s, rad/s2]."""
    assumed: tuple[str, ...] = ()
    """Fields that the robot's maker does not publish: conservative values, printed at the start of a run."""
    arms: Mapping[str, "RobotProfile"] = field(default_factory=dict)
    """Arms of a robot with several arms, by the names that action specs use; empty: one arm."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, float)]
            self._require(bool(np.isfinite(numbers).all()), f"{each.name} is {value}; expected finite numbers")
        self._check_joints()
        self._check_tool()
        self._check_links()
        for name in ("base_velocity", "base_acceleration"):
            values = getattr(self, name)
            fits = len(values) == len(self.base_velocity) and all(value > 0 for value in values)
            self._require(fits, f"{name} is {values}; expected a positive number for each of the base's directions")
        known = {each.name for each in fields(self)}
        for name in self.assumed:
            self._require(name in known, f"assumed names {name!r}; expected fields of the profile")

    def _check_joints(self) -> None:
        for name in (*_LIMITS, "home_rad"):
            found = len(getattr(self, name))
            self._require(found == self.joints, f"{name} has {found} entries for {self.joints} joints; give one each")
        for name in ("velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3"):
            self._require(min(getattr(self, name)) > 0, f"{name} is {getattr(self, name)}; expected positive numbers")
        self._require(self.opening_m >= 0, f"opening_m is {self.opening_m}; expected 0 (no gripper) or more")
        lower, upper = (limits.tolist() for limits in self.soft_limits_rad)
        for joint, low, high, home in zip(self.joint_names, lower, upper, self.home_rad, strict=True):
            self._require(low < high, f"{joint}: its limits are at most 2 * soft_margin_rad apart; lower the margin")
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
        self._require((box[0] is None) == (box[1] is None), "give both corners of the workspace, or neither")
        if box[0] is not None and box[1] is not None:
            fits = len(box[0]) == len(box[1]) == 3 and all(np.less(box[0], box[1]))
            self._require(
                fits, f"workspace {box[0]} .. {box[1]} is not a box; give x y z of its lower and upper corner"
            )

    def _check_links(self) -> None:
        margin, distances = self.collision_margin_m, self.link_distances
        if margin is None:
            return
        self._require(distances is not None, "collision_margin_m needs `kinematics` and `capsules`")
        assert distances is not None
        sides = list(self.arms) or [""]
        named = [f"{sides[side]} link {link}".strip() for side, link in distances.owners]
        for (one, other), apart in zip(distances.pairs, distances(np.asarray(self.home_rad)), strict=True):
            self._require(
                bool(apart >= margin),
                f"{named[other]} and {named[one]} are {apart:.3f} m apart at home, less than collision_margin_m {margin:g}; "
                "lower it, or list the pair in collision_ignored",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `profile_from_dict` reads them back."""
        if not self.arms:
            return {name: value for name, value in asdict(self).items() if name != "arms"}
        values = {each: getattr(self, each) for each in ("name", "base_velocity", "base_acceleration")}
        return values | {"arms": {name: arm.to_dict() for name, arm in self.arms.items()}}

    @cached_property
    def link_distances(self) -> LinkDistances | None:
        """Distances for `collision_margin_m`: between links of a single arm, or between several arms; None: no capsules."""
        parts = [arm for _, arm, _, _ in self.parts if arm.kinematics is not None]
        if not any(arm.capsules for arm in parts):
            return None
        described = [
            (arm.kinematics, arm.capsules, arm.collision_ignored) for arm in parts if arm.kinematics is not None
        ]
        try:
            return LinkDistances(described, within=not self.arms)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def clearance_m(self, qpos: Float[np.ndarray, "*B joints"], margin_share: float = 1.0) -> Float[np.ndarray, "*B"]:
        """Smallest distance between links, of each arm and between arms, minus `collision_margin_m` times `margin_share` [m].

        Infinite where no margin is set.
        """
        found = np.full(qpos.shape[:-1], np.inf)
        for arm, joints in [(arm, joints) for _, arm, joints, _ in self.parts if self.arms] + [(self, slice(None))]:
            distances, margin = arm.link_distances, arm.collision_margin_m
            if margin is not None and distances is not None and distances.pairs:
                found = np.minimum(found, distances(qpos[..., joints]).min(-1) - margin_share * margin)
        return np.asarray(found)

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self.joint_names)

    @cached_property
    def openings_m(self) -> np.ndarray:
        """(grippers,) distance between the fingers of each open gripper [m]."""
        if self.arms:
            return np.concatenate([arm.openings_m for arm in self.arms.values()])
        return np.array([self.opening_m] if self.opening_m else [])

    @property
    def grippers(self) -> int:
        """Number of grippers."""
        return len(self.openings_m)

    @property
    def arm(self) -> Arm | None:
        """The kinematics of a robot of one arm, where known."""
        return self.kinematics

    @cached_property
    def parts(self) -> tuple[tuple[str, "RobotProfile", slice, slice], ...]:
        """Per arm: name (empty for a single arm), profile, and the slices of its joints and its gripper."""
        if not self.arms:
            return (("", self, slice(0, self.joints), slice(0, self.grippers)),)
        found, joint, gripper = [], 0, 0
        for name, arm in self.arms.items():
            found.append((name, arm, slice(joint, joint + arm.joints), slice(gripper, gripper + arm.grippers)))
            joint, gripper = joint + arm.joints, gripper + arm.grippers
        return tuple(found)

    @cached_property
    def soft_limits_rad(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of targets (joints,) each [rad]."""
        if self.arms:
            lower, upper = zip(*(arm.soft_limits_rad for arm in self.arms.values()), strict=True)
            return np.concatenate(lower), np.concatenate(upper)
        lower = np.asarray(self.position_lower_rad) + self.soft_margin_rad
        return lower, np.asarray(self.position_upper_rad) - self.soft_margin_rad

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"{self.name}: {message}")


def of_arms(name: str, arms: Mapping[str, RobotProfile], **base: tuple[float, ...]) -> RobotProfile:
    """The profile of a robot with several arms: joints and limits concatenated; each arm's tool has its own limits.

    Joint names that occur in two arms are prefixed with the arm's name. Limits of the whole robot (`first_jump_rad`,
    `following_rad`) are the smallest of its arms'.
    """
    names = [joint for arm in arms.values() for joint in arm.joint_names]
    if len({*names}) < len(names):
        arms = {
            side: replace(arm, joint_names=tuple(f"{side}_{joint}" for joint in arm.joint_names))
            for side, arm in arms.items()
        }
    values: dict[str, Any] = {
        field: tuple(value for arm in arms.values() for value in getattr(arm, field))
        for field in ("joint_names", *_LIMITS, "home_rad")
    }
    least = {field: min(getattr(arm, field) for arm in arms.values()) for field in ("first_jump_rad", "following_rad")}
    assumed = sorted({field for arm in arms.values() for field in arm.assumed})
    margin = min(arm.soft_margin_rad for arm in arms.values())
    apart = [arm.collision_margin_m for arm in arms.values() if arm.collision_margin_m is not None]
    values |= least | base | {"collision_margin_m": min(apart, default=None)}
    return RobotProfile(name=name, **values, soft_margin_rad=margin, assumed=tuple(assumed), arms=dict(arms))


def read_profile(source: str | Path) -> RobotProfile:
    """A shipped profile by name (`panda`, `fr3`, ...), or any YAML or JSON file with the fields of `RobotProfile`.

    Raises:
        ValueError: no such profile, or a field is unknown, missing or wrong.
    """
    shipped = {known.stem: known for known in (*PROFILES.glob("*.yaml"), *PROFILES.glob("*.json"))}
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise ValueError(
            f"no robot profile {str(source)!r}; shipped profiles: {', '.join(sorted(shipped))}; or give the path of a YAML or "
            "JSON file"
        )
    return profile_from_dict(read_yaml(path), f"robot profile {path}", path.parent)


def profile_from_dict(
    values: Mapping[str, Any], source: str = "robot profile", folder: Path | None = None
) -> RobotProfile:
    """A profile from plain values, such as those that a robot sends over the network.

    Args:
        values: the fields; `profile`, here or in an entry of `arms`, names another profile, whose fields the others override.
        source: begins the message of an error.
        folder: folder of the file that they come from, in which a `profile` is looked for; None: an entry can't name one.
    """
    refuse_import_paths(values, source)
    values = dict(values)
    if (named := values.pop("profile", None)) is not None:
        values = _based_on(str(named), values, source, folder)
    arms = values.pop("arms", None) or {}
    if not isinstance(arms, Mapping) or not all(isinstance(arm, Mapping) for arm in arms.values()):
        raise ValueError(f"{source}: arms must be a mapping of names to fields, got {arms!r}")
    if arms:
        if unknown := sorted(set(values) - {"name", "base_velocity", "base_acceleration"}):
            raise ValueError(
                f"{source}: {unknown[0]} belongs to an arm; next to `arms` only name and the base's limits are allowed"
            )
        base = {name: tuple(values.get(name, ())) for name in ("base_velocity", "base_acceleration")}
        made = {name: profile_from_dict(arm, f"{source}, arm {name!r}", folder) for name, arm in arms.items()}
        return of_arms(str(values.get("name", "robot")), made, **base)
    try:
        return options_of(RobotProfile, values, "", "a robot profile")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _based_on(named: str, values: Mapping[str, Any], source: str, folder: Path | None) -> dict[str, Any]:
    """The fields of the profile `named`, overridden by `values`; `kinematics` is merged field by field."""
    if folder is None:
        raise ValueError(f"{source}: profile {named!r} can be named only in a file; give its fields instead")
    beside = folder / named
    whole, kinematics = read_profile(beside if beside.is_file() else named).to_dict(), values.get("kinematics")
    merged = whole | dict(values)
    if isinstance(kinematics, Mapping) and whole.get("kinematics"):
        merged["kinematics"] = whole["kinematics"] | dict(kinematics)
    return merged
