"""Self-collision margin by capsules: the distances against MuJoCo's, and what the limits make of them."""

from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.control.collision import Capsule
from robopolicy.control.limits import limit_targets
from robopolicy.control.profile import RobotProfile, of_arms, profile_from_dict, read_profile
from robopolicy.control.targets import Targets
from robopolicy.sim.description import capsules_of, profile_values
from robopolicy.sim.scene import ASSETS

ARM = """<mujoco><compiler angle="radian"/><asset>
  <mesh name="wedge" vertex="0 0 0  .1 0 0  0 .06 0  0 0 .05  .08 .03 .02"/></asset><worldbody>
  <body name="base" pos="0.3 -0.2 0.5" euler="0.4 0.2 -0.3"><geom name="g0" type="{0}" size="{1}"/>
   <body pos="0 0 0.2"><joint name="j1" axis="0 0 1" range="-3 3"/><geom name="g1" type="{0}" size="{1}" pos="0 0 .05"/>
    <body pos="0 0.02 0.15" euler="0 0.3 0"><joint name="j2" axis="0 1 0" range="-3 3"/><geom name="g2" {2} euler="0 1 0"/>
     <body pos="0.3 0 0"><joint name="j3" axis="0 1 0.2" pos="0 0.01 0" range="-3 3"/>
      <geom name="g3" type="{0}" size="{1}" euler="0 1.2 0.3"/>
      <body pos="0.25 0 0.05"><joint name="j4" axis="1 0 0" range="-3 3"/><geom name="g4" type="{0}" size="{1}" pos=".1 0 0"/>
 </body></body></body></body></body></worldbody></mujoco>"""
SHAPES = {
    "capsule": ("capsule", "0.03 0.06", 'type="capsule" size="0.03 0.1"'),
    "sphere": ("sphere", "0.04", 'type="capsule" size="0.03 0.1"'),
    "box": ("box", "0.03 0.05 0.02", 'type="box" size="0.02 0.03 0.1"'),
    "cylinder": ("cylinder", "0.03 0.05", 'type="mesh" mesh="wedge"'),
}


def described(tmp_path: Path, kind: str) -> tuple[RobotProfile, mujoco.MjModel]:
    """The profile of an arm of such shapes, and MuJoCo's model of it."""
    path = tmp_path / "arm.xml"
    path.write_text(ARM.format(*SHAPES[kind]))
    profile = profile_from_dict(profile_values(path))
    return replace(profile, capsules=capsules_of(path, profile)), mujoco.MjModel.from_xml_path(str(path))


@pytest.mark.parametrize("kind", SHAPES)
def test_distances_between_links_are_mujocos_or_smaller(kind, tmp_path):
    """Guards against: a capsule in another frame than its link's, or that a corner of the link sticks out of."""
    profile, model = described(tmp_path, kind)
    distances, data = profile.link_distances, mujoco.MjData(model)
    qpos = np.random.default_rng(0).uniform(-3, 3, (300, 4))
    found = distances(qpos)
    assert len(distances.pairs) == 6, "of five links, those that do not follow one another"
    slack = []
    for row, joints in enumerate(qpos):
        data.qpos[:] = joints
        mujoco.mj_kinematics(model, data)
        for pair, apart in zip(distances.pairs, found[row], strict=True):
            one, other = (f"g{distances.owners[place][1]}" for place in pair)
            theirs = mujoco.mj_geomDistance(model, data, model.geom(one).id, model.geom(other).id, 5.0, None)
            if theirs > 1e-3:
                slack.append(theirs - apart)
    assert len(slack) > 500
    assert min(slack) > -1e-6
    if kind in ("capsule", "sphere"):
        assert max(slack) < 1e-6
    else:
        assert np.median(slack) < 0.04, "covered, but not by far"


def folding(profile: RobotProfile, convert=lambda values: values):
    """Steps of the limits towards a posture in which the arm is folded onto its base; the last posture, the kinds counted."""
    qpos, counted = convert(np.array([profile.home_rad] * 2)), 0
    wanted = convert(np.array([[0.3, 2.8, 2.8, 0.0], [0.3, 0.2, 0.0, 0.0]]))
    for _ in range(60):
        asked = Targets(wanted, convert(np.zeros((2, 0))), {"non_finite": wanted[:, 0] > 9})
        allowed = limit_targets(profile, asked, qpos, convert(np.zeros((2, 0))), 0.1)
        qpos = allowed.joint_position_rad
        counted = counted + 1 * allowed.limited.get("self_collision", wanted[:, 0] > 9)
    return qpos, counted


def test_links_are_kept_apart_and_each_intervention_is_counted(tmp_path):
    """Guards against: an arm that hits itself, a limit that changes free motions, or one that is not counted."""
    free, _ = described(tmp_path, "capsule")
    profile = replace(free, collision_margin_m=0.02)
    unlimited, none = folding(free)
    assert free.link_distances(unlimited).min() < 0.02
    assert not none.any()
    kept, counted = folding(profile)
    assert profile.link_distances(kept).min() >= 0.02 - 1e-9
    assert counted[0] > 0
    assert counted[1] == 0
    np.testing.assert_array_equal(kept[1], unlimited[1])
    tensors, theirs = folding(profile, torch.from_numpy)
    np.testing.assert_allclose(tensors, kept, atol=1e-9)
    np.testing.assert_array_equal(theirs, counted)


def test_a_posture_that_is_too_close_may_be_left_but_not_worsened(tmp_path):
    """Guards against: an arm that is stuck where it was brought by hand."""
    free, _ = described(tmp_path, "capsule")
    profile = replace(free, collision_margin_m=0.02)
    close, _ = folding(free)

    def moved(step):
        asked = Targets(close[:1] + step, np.zeros((1, 0)), {"non_finite": np.zeros(1, bool)})
        return limit_targets(profile, asked, close[:1], np.zeros((1, 0)), 0.1)

    back, deeper = moved(np.array([0, -0.05, -0.05, 0.0])), moved(np.array([0, 0.0, 0.05, 0.0]))
    assert not back.limited["self_collision"].any()
    assert free.link_distances(deeper.joint_position_rad).min() >= free.link_distances(close[:1]).min() - 1e-9


def test_two_arms_are_kept_apart(tmp_path):
    """Guards against: arms that are each free of itself and hit one another."""
    one, _ = described(tmp_path, "capsule")
    one = replace(one, collision_margin_m=0.02)
    other = replace(one, kinematics=replace(one.kinematics, base=(0.7, 0.0, 0.0, 0.0, 0.0, 3.0)))
    pair = of_arms("pair", {"left": one, "right": other})
    assert pair.collision_margin_m == 0.02
    qpos, wanted = np.array(pair.home_rad), np.zeros(8)
    counted = 0
    for _ in range(40):
        asked = Targets(wanted, np.zeros(0), {"non_finite": np.zeros((), bool)})
        allowed = limit_targets(pair, asked, qpos, np.zeros(0), 0.1)
        qpos = allowed.joint_position_rad
        counted += bool(allowed.limited["self_collision"])
    assert pair.link_distances(qpos).min() >= 0.02 - 1e-9
    assert all({first[0], second[0]} == {0, 1} for first, second in _owners(pair))


def _owners(profile):
    return [tuple(profile.link_distances.owners[place] for place in pair) for pair in profile.link_distances.pairs]


def test_the_verb_writes_capsules_that_are_read_back(tmp_path, capsys):
    """Guards against: a profile whose capsules the reader refuses, or a margin that switches itself on."""
    (tmp_path / "arm.xml").write_text(ARM.format(*SHAPES["box"]))
    assert main(["profile", str(tmp_path / "arm.xml"), "--out", str(tmp_path / "arm.yaml")]) == 0
    assert "5 capsules; set collision_margin_m to keep links apart" in capsys.readouterr().out
    profile = read_profile(tmp_path / "arm.yaml")
    assert [capsule.link for capsule in profile.capsules] == [0, 1, 2, 3, 4]
    assert profile.collision_margin_m is None
    assert profile_from_dict(profile.to_dict()) == profile, "as a robot sends it over the network"


@pytest.mark.parametrize("name", ["panda", "fr3", "ur5e", "xarm7", "vx300s", "so101"])
def test_a_shipped_profile_takes_a_margin(name, tmp_path):
    """Guards against: an optional limit without data, or one that an arm violates at home."""
    (tmp_path / "mine.yaml").write_text(f"profile: {name}\ncollision_margin_m: 0.02\n")
    profile = read_profile(tmp_path / "mine.yaml")
    assert profile == replace(read_profile(name), collision_margin_m=0.02)
    assert profile.clearance_m(np.asarray(profile.home_rad)) > 0
    assert profile.clearance_m(np.asarray(profile.home_rad), 0.0) == pytest.approx(
        profile.clearance_m(np.asarray(profile.home_rad)) + 0.02
    )
    assert {capsule.link for capsule in profile.capsules} == set(range(profile.joints + 1))
    assert ("capsules" in profile.assumed) == (name not in ("panda", "fr3")), "those are the maker's"
    assert np.isinf(read_profile(name).clearance_m(np.zeros((3, profile.joints)))).all()


def test_the_viperx_pairs_capsules_cover_its_simulated_arms():
    """Guards against: arms that touch although their capsules don't, or capsules that forbid postures which are free."""
    pair, model = read_profile("viperx_pair"), mujoco.MjModel.from_xml_path(str(ASSETS / "viperx_pair.xml"))
    data = mujoco.MjData(model)
    sides = [[], []]
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        if body.startswith(("left_", "right_")) and "finger" not in body:
            sides[body.startswith("right_")].append(geom)
    rows = np.random.default_rng(0).uniform(*pair.soft_limits_rad, (3000, 12))
    near = rows[pair.link_distances(rows).min(-1) < 0.15][:40]
    for qpos in near:
        for name, angle in zip(pair.joint_names, qpos, strict=True):
            data.qpos[model.joint(name).qposadr] = angle
        mujoco.mj_kinematics(model, data)
        theirs = min(mujoco.mj_geomDistance(model, data, i, j, 2.0, None) for i in sides[0] for j in sides[1])
        ours = float(pair.link_distances(qpos).min())
        # up to 5 cm less, because the palms are flat boxes
        assert max(theirs, 0.0) - 0.05 < max(ours, 0.0) <= max(theirs, 0.0) + 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"collision_margin_m": 1.0},
            r"link 0 and link 2 are 0\.\d+ m apart at home, less than collision_margin_m 1; lower",
        ),
        ({"collision_margin_m": 0.01, "capsules": ()}, "collision_margin_m needs `kinematics` and `capsules`"),
        (
            {"capsules": (Capsule(5, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0.1),)},
            r"a capsule of link 5; the arm's links are 0 \.\. 4",
        ),
    ],
)
def test_a_margin_that_cannot_hold_is_refused_in_one_line(changes, message, tmp_path):
    """Guards against: an arm that can't leave its home, or a margin that limits nothing."""
    profile, _ = described(tmp_path, "capsule")
    with pytest.raises(ValueError, match=message) as caught:
        replace(profile, **changes)
    assert "\n" not in str(caught.value)
