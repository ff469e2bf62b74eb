"""The shipped profiles, and those made from a robot's own description, against MuJoCo."""

from pathlib import Path

import mujoco
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.control.kinematics import pose_and_jacobian, rotation_vector
from robopolicy.control.profile import PROFILES, RobotProfile, read_profile
from robopolicy.sim.description import profile_values
from robopolicy.sim.scene import ASSETS, build_scene

ARMS = Path(__file__).parent / "arms"
"""Joints of the arms' own descriptions, without meshes: numbers of their makers' URDFs."""
POSES = 1000


def assert_same_kinematics(
    profile: RobotProfile, model: mujoco.MjModel, kind: str, tool: str, joints: list[str]
) -> None:
    """Position within 1e-6 m and rotation within 1e-6 rad of MuJoCo's, and the Jacobian, at 1,000 poses."""
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    qpos = rng.uniform(profile.position_lower_rad, profile.position_upper_rad, (POSES, profile.joints))
    assert profile.arm is not None
    positions, rotations, jacobians = pose_and_jacobian(profile.arm, qpos)
    places = [int(model.joint(name).qposadr[0]) for name in joints]
    columns = [int(model.joint(name).dofadr[0]) for name in joints]
    for row in range(POSES):
        data.qpos[places] = qpos[row]
        mujoco.mj_kinematics(model, data)
        frame = data.body(tool) if kind == "body" else data.site(tool)
        np.testing.assert_allclose(positions[row], frame.xpos, atol=1e-6)
        turn = rotation_vector(rotations[row] @ frame.xmat.reshape(3, 3).T)
        assert np.linalg.norm(turn) < 1e-6
    mujoco.mj_comPos(model, data)
    linear, angular = np.zeros((2, 3, model.nv))
    number = frame.id
    (mujoco.mj_jacBody if kind == "body" else mujoco.mj_jacSite)(model, data, linear, angular, number)
    np.testing.assert_allclose(jacobians[-1], np.concatenate([linear, angular])[:, columns], atol=1e-6)


def urdf_model(path: Path) -> mujoco.MjModel:
    """The URDF as MuJoCo reads it, fixed links kept."""
    spec = mujoco.MjSpec.from_file(str(path))
    spec.compiler.fusestatic = False
    for body in spec.bodies[1:]:
        body.explicitinertial, body.mass, body.inertia = True, 1.0, [1.0, 1.0, 1.0]
    return spec.compile()


@pytest.mark.parametrize("name", ["ur5e", "xarm7", "vx300s", "so101"])
def test_a_shipped_profile_has_the_kinematics_of_its_makers_description(name):
    """Guards against: a sign, an axis or a length copied wrong, with which the tool goes elsewhere."""
    profile = read_profile(name)
    assert_same_kinematics(profile, urdf_model(ARMS / f"{name}.urdf"), "body", "tool", list(profile.joint_names))


@pytest.mark.parametrize("name", ["panda", "fr3"])
def test_frankas_profiles_have_the_kinematics_of_the_scene(name):
    """Guards against: a profile that differs from the simulated arm."""
    model = build_scene(()).model
    assert_same_kinematics(read_profile(name), model, "site", "ee", [f"joint{number}" for number in range(1, 8)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_pairs_profile_has_the_kinematics_of_its_scene(side):
    """Guards against: an arm of the pair whose base is elsewhere than in the simulator."""
    scene, pair = build_scene((), robot="viperx_pair"), read_profile("viperx_pair")
    arm = pair.arms[side]
    assert_same_kinematics(arm, scene.model, "site", f"{side}_ee", list(arm.joint_names))


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_profile_says_what_is_assumed(name):
    """Guards against: a number nobody published that is taken for the maker's."""
    profile = read_profile(name)
    text = (PROFILES / f"{name}.yaml").read_text()
    assert text.startswith("#"), "the source of its numbers"
    if name not in ("panda", "fr3"):
        assert profile.assumed


@pytest.mark.parametrize("name", ["ur5e", "xarm7", "vx300s", "so101"])
def test_the_verb_makes_a_profile_from_a_urdf(name, tmp_path, capsys):
    """Guards against: kinematics that only hold for arms which somebody measured by hand."""
    out = tmp_path / "arm.yaml"
    assert main(["profile", str(ARMS / f"{name}.urdf"), "--out", str(out), "--opening-m", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert "assumed   acceleration_rad_s2, jerk_rad_s3, home_rad" in printed
    made, shipped = read_profile(out), read_profile(name)
    assert made.joint_names == shipped.joint_names
    np.testing.assert_allclose(made.position_lower_rad, shipped.position_lower_rad, atol=1e-4)
    assert made.opening_m == 0.05
    assert_same_kinematics(made, urdf_model(ARMS / f"{name}.urdf"), "body", "tool", list(made.joint_names))


def test_the_verb_makes_a_profile_from_an_mjcf(tmp_path):
    """Guards against: MuJoCo's defaults, quaternions and joint offsets read in another way than MuJoCo does."""
    values = profile_values(ASSETS / "arm.xml", tool="ee")
    assert values["joint_names"] == [f"joint{number}" for number in range(1, 8)]
    np.testing.assert_allclose(values["position_upper_rad"], read_profile("panda").position_upper_rad)
    (tmp_path / "arm.yaml").write_text(__import__("yaml").safe_dump(values))
    assert_same_kinematics(
        read_profile(tmp_path / "arm.yaml"), build_scene(()).model, "site", "ee", values["joint_names"]
    )
    offset = """<mujoco><compiler angle="degree"/><worldbody><body name="a" pos="0 0 1" euler="30 0 0">
      <joint name="one" axis="0 1 0" pos="0.1 0 0.2" range="-90 90"/><geom size="0.1"/>
      <body name="b" pos="0.3 0 0"><joint name="two" axis="1 0 1" pos="0 0.1 0" range="-40 80"/><geom size="0.1"/>
      <site name="tip" pos="0 0 0.5" euler="0 45 0"/></body></body></worldbody></mujoco>"""
    (tmp_path / "offset.xml").write_text(offset)
    values = profile_values(tmp_path / "offset.xml", tool="tip")
    (tmp_path / "offset.yaml").write_text(__import__("yaml").safe_dump(values))
    model = mujoco.MjModel.from_xml_string(offset)
    assert_same_kinematics(read_profile(tmp_path / "offset.yaml"), model, "site", "tip", ["one", "two"])


URDF = (ARMS / "vx300s.urdf").read_text()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            URDF.replace('type="revolute"', 'type="floating"', 1),
            [],
            "(joint 'waist' is floating; the arm must be a chain of revolute joints)",
        ),
        (URDF.replace('type="revolute"', 'type="prismatic"', 1), ["--tool", "tool"], "joint 'waist' is prismatic"),
        (URDF.replace("<limit ", "<bound ", 1), [], "joint 'waist' has no position limits; state them there"),
        (URDF, ["--tool", "thumb"], "no link or site 'thumb' for --tool; it has: base, link_waist, link_shoulder"),
        (URDF.replace("0.05955 0 0.3", "0.05955 0"), [], "MuJoCo can't read it"),
        ("<robot", [], "expected a URDF or MJCF file"),
        ("<sdf/>", [], "expected a URDF (<robot>) or MJCF (<mujoco>), found <sdf>"),
        ('<robot name="x"><link name="a"/></robot>', [], "no revolute joint on the way to 'a'"),
    ],
)
def test_a_description_without_a_serial_arm_is_refused_in_one_line(text, options, message, tmp_path, capsys):
    """Guards against: a profile of half an arm, or with limits that nobody stated."""
    (tmp_path / "arm.urdf").write_text(text)
    code = main(["profile", str(tmp_path / "arm.urdf"), "--out", str(tmp_path / "arm.yaml"), *options])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "arm.yaml").exists()
