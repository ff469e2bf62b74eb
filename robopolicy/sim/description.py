"""A robot's profile from its own description: the serial chain of a URDF or MJCF, with the limits that it states.

MuJoCo reads both, and resolves an MJCF's defaults and includes; a URDF's speed limits, which it ignores, are read separately.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from robopolicy.control.collision import Capsule
from robopolicy.control.kinematics import link_frames
from robopolicy.control.profile import RobotProfile
from robopolicy.types import one_line

ASSUMED = {"velocity_rad_s": 1.0, "acceleration_rad_s2": 2.0, "jerk_rad_s3": 20.0}
"""Conservative limits [rad/s, rad/s2, rad/s3] of a joint for which the description states none."""
SOFT_MARGIN_RAD = 0.1
BESIDE_THE_BODIES = (
    *("sensors", "actuators", "tendons", "equalities", "keys", "pairs", "excludes"),
    *("materials", "textures"),
)
"""Elements of an MJCF that don't describe its links, and may refer to elements that are deleted here."""


JOINT_KINDS = ("floating", "ball", "prismatic", "revolute")
"""MuJoCo's types of joints in the words of a URDF, by their numbers."""


def profile_values(path: Path, tool: str | None = None, base: str | None = None) -> dict[str, Any]:
    """Fields of a `RobotProfile` from a URDF or MJCF file; what it doesn't state is listed in `assumed`.

    Args:
        path: the file.
        tool: link or site that is the tool's frame; None: the end of the longest chain of revolute joints.
        base: link that is the base; None: the root.

    Raises:
        ValueError: the file is neither, the chain holds a joint that is not revolute, or a joint has no limits.
    """
    speeds, model = _speeds(path), _model(path)
    data = _at_rest(model)
    joints, (body, site) = _arm(model, tool, base, path.name)
    names = [model.joint(joint).name for joint in joints]
    places = [np.eye(4) if base is None else _frame(data.body(base))]
    places += [_transform(data.xanchor[each], data.xmat[model.jnt_bodyid[each]].reshape(3, 3)) for each in joints]
    places.append(_frame(data.body(body) if site is None else data.site(site)))
    steps = [np.linalg.inv(before) @ after for before, after in pairwise(places)]
    *frames, to_tool = ([*map(float, step[:3, 3]), *_roll_pitch_yaw(step[:3, :3])] for step in steps)
    lower, upper = zip(*(_limits(model, joint, path.name) for joint in joints), strict=True)
    given = [speeds.get(name) for name in names]
    assumed = ["velocity_rad_s"] if None in given else []
    return {
        "name": path.stem,
        "joint_names": names,
        "position_lower_rad": list(lower),
        "position_upper_rad": list(upper),
        "velocity_rad_s": [ASSUMED["velocity_rad_s"] if value is None else value for value in given],
        "acceleration_rad_s2": [ASSUMED["acceleration_rad_s2"]] * len(joints),
        "jerk_rad_s3": [ASSUMED["jerk_rad_s3"]] * len(joints),
        "home_rad": [
            float(np.clip(0.0, low + SOFT_MARGIN_RAD, high - SOFT_MARGIN_RAD))
            for low, high in zip(lower, upper, strict=True)
        ],
        "soft_margin_rad": SOFT_MARGIN_RAD,
        "opening_m": 0.0,
        "kinematics": {
            "frames": frames,
            "axes": [[float(value) for value in model.jnt_axis[joint]] for joint in joints],
            "tool": to_tool,
        },
        "assumed": [*assumed, "acceleration_rad_s2", "jerk_rad_s3", "home_rad"],
    }


def _speeds(path: Path) -> dict[str | None, float]:
    """The speed limits that a URDF states, which MuJoCo does not read: joint -> [rad/s]."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError) as error:
        raise ValueError(f"{path}: expected a URDF or MJCF file: {error}") from None
    if root.tag not in ("robot", "mujoco"):
        raise ValueError(f"{path}: expected a URDF (<robot>) or MJCF (<mujoco>), found <{root.tag}>")
    limits = {joint.get("name"): joint.find("limit") for joint in root.findall("joint")}
    stated = {name: limit.get("velocity") for name, limit in limits.items() if limit is not None}
    return {name: float(velocity) for name, velocity in stated.items() if velocity is not None}


def _arm(model: Any, tool: str | None, base: str | None, where: str) -> tuple[list[int], tuple[int, int | None]]:
    """The joints between the base and the tool, by number, and the tool: its body, and its site if it is one."""
    bodies: dict[str, tuple[int, int | None]]
    bodies = {model.body(number).name or f"body {number}": (number, None) for number in range(1, model.nbody)}
    sites = {model.site(number).name or f"site {number}": number for number in range(model.nsite)}
    places = bodies | {name: (int(model.site_bodyid[number]), number) for name, number in sites.items()}
    for role, what, name, known in (("tool", "link or site", tool, places), ("base", "link", base, bodies)):
        if name is not None and name not in known:
            raise ValueError(f"{where}: no {what} {name!r} for --{role}; it has: {', '.join(known)}")
    paths = {name: _path(model, body, 0 if base is None else bodies[base][0]) for name, (body, _) in places.items()}
    joints = {name: [joint for body in path for joint in _joints_of(model, body)] for name, path in paths.items()}
    kinds = {name: [JOINT_KINDS[model.jnt_type[joint]] for joint in found] for name, found in joints.items()}
    if tool is None:
        sound = [name for name, found in kinds.items() if {*found} == {"revolute"}]
        ranked = sorted(
            sound or kinds,
            key=lambda name: (kinds[name].count("revolute"), len(paths[name]), name in sites),
        )
        tool = ranked[-1] if ranked else "any link"
    for joint, kind in zip(joints.get(tool, ()), kinds.get(tool, ()), strict=True):
        if kind != "revolute":
            raise ValueError(
                f"{where}: joint {model.joint(joint).name!r} is {kind}; a profile's arm is a serial chain of revolute joints: "
                "choose --base and --tool around it"
            )
    if not joints.get(tool):
        raise ValueError(f"{where}: no revolute joint on the way to {tool!r}; choose another --tool")
    return joints[tool], places[tool]


def _path(model: Any, body: int, base: int) -> list[int]:
    """The bodies from the base (excluded) to this one; empty if this one is not a descendant of the base."""
    path: list[int] = []
    while body not in (0, base):
        path.insert(0, body)
        body = int(model.body_parentid[body])
    return path if body == base else []


def _joints_of(model: Any, body: int) -> range:
    """The joints that move a body relative to its parent."""
    first = int(model.body_jntadr[body])
    return range(first, first + int(model.body_jntnum[body]))


def _limits(model: Any, joint: int, where: str) -> tuple[float, float]:
    low, high = (float(value) for value in model.jnt_range[joint])
    if not model.jnt_limited[joint] or not low < high:
        raise ValueError(
            f"{where}: joint {model.joint(joint).name!r} has no position limits; state them there (lower, upper or range) [rad]"
        )
    return low, high


def _transform(position: np.ndarray, rotation: Any = ((1, 0, 0), (0, 1, 0), (0, 0, 1))) -> np.ndarray:
    """(4, 4)."""
    frame = np.eye(4)
    frame[:3, 3], frame[:3, :3] = position, rotation
    return frame


def _roll_pitch_yaw(rotation: np.ndarray) -> list[float]:
    """Turns [rad] about the fixed x, y and z axes, in this order."""
    sine = math.hypot(rotation[0, 0], rotation[1, 0])
    if sine > 1e-9:
        roll = math.atan2(rotation[2, 1], rotation[2, 2])
        return [roll, math.atan2(-rotation[2, 0], sine), math.atan2(rotation[1, 0], rotation[0, 0])]
    return [math.atan2(-rotation[1, 2], rotation[1, 1]), math.atan2(-rotation[2, 0], sine), 0.0]


def capsules_of(path: Path, profile: RobotProfile, base: str | None = None) -> tuple[Capsule, ...]:
    """Capsules that cover the collision shapes of an arm, or all shapes of a link that has no collision shapes.

    A capsule, sphere or cylinder becomes a capsule of the same radius; a box or mesh becomes the tightest capsule along its
    longest axis. Bodies on other joints, such as fingers, count as parts of the link that carries them, at joint position 0.
    Meshes whose files are missing are left out.

    Args:
        path: URDF or MJCF file.
        profile: the profile from its `profile_values`.
        base: as for `profile_values`.

    Raises:
        ValueError: MuJoCo can't read the file.
    """
    assert profile.kinematics is not None
    numbers = {name: place + 1 for place, name in enumerate(profile.joint_names)}
    model = _model(path)
    data = _at_rest(model)
    link_of = {0: -1}
    for body in range(1, model.nbody):
        moved = [numbers.get(model.joint(joint).name, 0) for joint in _joints_of(model, body)]
        stands = model.body(body).name == base or (base is None and model.body_parentid[body] == 0)
        link_of[body] = max(moved, default=0) or (0 if stands else link_of[int(model.body_parentid[body])])
    placed = np.eye(4) if base is None else _frame(data.body(base))
    frames = [placed @ frame for frame in link_frames(profile.kinematics, np.zeros(profile.joints))]
    owner = [link_of[int(body)] for body in model.geom_bodyid]
    solid = (model.geom_contype | model.geom_conaffinity) != 0
    touching = {link for link, collides in zip(owner, solid, strict=True) if collides}
    capsules = []
    for geom, link in enumerate(owner):
        segment = _segment(model, geom)
        if link < 0 or segment is None or (link in touching and not solid[geom]):
            continue
        half, radius, shape = segment
        ends = (
            np.linalg.inv(frames[link])
            @ _frame(data.geom(geom))
            @ shape
            @ np.array([[0, 0, -half, 1], [0, 0, half, 1]]).T
        )
        start, end = ((x, y, z) for x, y, z in ends[:3].T.round(6).tolist())
        capsules.append(Capsule(link, start, end, round(radius, 6)))
    return tuple(capsules)


def _model(path: Path) -> Any:
    """The description's compiled model: links, joints, sites and collision shapes, without meshes whose files are missing."""
    import mujoco

    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise ValueError(f"{path}: MuJoCo can't read it: {one_line(error)}") from None
    spec.compiler.fusestatic = False
    spec.compiler.discardvisual = False
    there = {mesh.name for mesh in spec.meshes if (path.parent / spec.meshdir / mesh.file).is_file() or not mesh.file}
    for body in spec.bodies:  # shapes to look at have large meshes, which take minutes to compile
        solid = any(geom.contype | geom.conaffinity for geom in body.geoms)
        for geom in list(body.geoms):
            absent = geom.type == mujoco.mjtGeom.mjGEOM_MESH and geom.meshname not in there
            geom.material = ""
            if absent or (solid and not geom.contype | geom.conaffinity):
                spec.delete(geom)
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            spec.delete(mesh)
    for site in spec.sites:
        site.material = ""
    for kind in BESIDE_THE_BODIES:
        for each in list(getattr(spec, kind, ())):
            spec.delete(each)
    for body in spec.bodies[1:]:
        body.explicitinertial, body.mass, body.inertia = True, 1.0, [1.0, 1.0, 1.0]
    try:
        return spec.compile()
    except ValueError as error:
        floating = [joint.name for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_FREE]
        hint = f" (joint {floating[0]!r} is floating; the arm must be a chain of revolute joints)" if floating else ""
        raise ValueError(f"{path}: MuJoCo can't compile it: {one_line(error)}{hint}") from None


def _at_rest(model: Any) -> Any:
    """The model's data with every joint in the position in which the description draws it."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    return data


def _segment(model: Any, geom: int) -> tuple[float, float, np.ndarray] | None:
    """The capsule that covers a shape: half length along z [m], radius [m], and frame in the shape's frame; None: a plane."""
    kind, size = int(model.geom_type[geom]), model.geom_size[geom]
    sphere, capsule, ellipsoid, cylinder, box, mesh = range(2, 8)
    if kind in (sphere, capsule, cylinder):
        return 0.0 if kind == sphere else float(size[1]), float(size[0]), np.eye(4)
    if kind in (box, ellipsoid):
        points = size * np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    elif kind == mesh:
        number = int(model.geom_dataid[geom])
        first = int(model.mesh_vertadr[number])
        points = model.mesh_vert[first : first + int(model.mesh_vertnum[number])].astype(float)
    else:
        return None
    middle = (points.min(0) + points.max(0)) / 2
    rotation = np.linalg.svd(points - middle)[2][[1, 2, 0]]  # rows: the longest axis is z
    frame = np.eye(4)
    frame[:3, :3] = rotation.T
    along = (points - middle) @ rotation.T
    center = np.r_[(along[:, :2].min(0) + along[:, :2].max(0)) / 2, 0.0]
    aside = np.linalg.norm(along[:, :2] - center[:2], axis=1)
    radius = float(aside.max())
    reach = np.sqrt(np.maximum(radius**2 - aside**2, 0.0))  # a vertex beside the axis is covered by the round end
    top, bottom = (along[:, 2] - reach).max(), (along[:, 2] + reach).min()
    center[2], half = (top + bottom) / 2, max(0.0, float(top - bottom) / 2)
    frame[:3, 3] = middle + rotation.T @ center
    return half, radius, frame


def _frame(placed: Any) -> np.ndarray:
    """Transform (4, 4) of a body, site or shape in the world."""
    return _transform(placed.xpos, placed.xmat.reshape(3, 3))
