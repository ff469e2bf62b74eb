"""Robot profiles: the shipped ones, and what is wrong with the others."""

import pytest

from robopolicy.control.profile import RobotProfile, profile_from_dict, read_profile


def test_shipped_profiles_have_the_data_sheets_limits_and_the_sims_home():
    """Guards against: a transposed digit in a limit of a real robot."""
    panda, fr3 = read_profile("panda"), read_profile("fr3")
    assert panda.velocity_rad_s == (2.175,) * 4 + (2.61,) * 3
    assert panda.acceleration_rad_s2 == (15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0)
    assert panda.jerk_rad_s3 == (7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0)
    assert panda.position_upper_rad == (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
    assert fr3.velocity_rad_s == (2.62,) * 4 + (5.26, 4.18, 5.26)
    assert fr3.jerk_rad_s3 == (5000.0,) * 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1.0}, "speed"),
        ({"velocity_rad_s": [1.0, 2.0]}, "velocity_rad_s has 2 entries for 7 joints"),
        ({"jerk_rad_s3": [0.0] * 7}, "jerk_rad_s3 is .* expected positive numbers"),
        ({"speed_m_s": float("nan")}, "speed_m_s is nan; expected finite numbers"),
        ({"home_rad": [0.0] * 7}, "panda_joint4: home 0.0 rad is not within"),
        ({"kinematics": {"dh": [[0.0, 0.0, 0.0]]}}, "kinematics have 1 joints for 7 joint names"),
        ({"kinematics": {"dh": [[0.0, 0.0]] * 7}}, "kinematics"),
        ({"gripper_opens": "third"}, "gripper_opens"),
        ({"kinematics": None}, "need `kinematics`"),
        ({"workspace_lower_m": [2.0, 0.0, 0.0]}, "is not a box"),
        ({"workspace_lower_m": None}, "both corners"),
    ],
)
def test_a_wrong_profile_is_refused_in_words(change, message):
    """Guards against: a typo in a safety limit that is taken for its default."""
    with pytest.raises(ValueError, match=message):
        profile_with(**change)


def profile_with(**change: object) -> RobotProfile:
    return profile_from_dict({**read_profile("panda").to_dict(), **change})


def test_an_unknown_or_broken_profile_file_names_what_there_is(tmp_path):
    """Guards against: FileNotFoundError where a list of the shipped profiles would help."""
    with pytest.raises(ValueError, match="no robot profile 'ur5'; shipped profiles: fr3, panda"):
        read_profile("ur5")
    (tmp_path / "mine.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="it holds a list; expected a mapping"):
        read_profile(tmp_path / "mine.yaml")
