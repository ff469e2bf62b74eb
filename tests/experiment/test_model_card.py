"""A run folder's README: what a stranger needs to know of a policy, and nothing of the machine that trained it."""

import json

from robopolicy.experiment import save_policy
from robopolicy.experiment.model_card import NO_RESULTS, update_results
from tests.experiment.test_run_folder import make_policy

FACTS = {
    "task": "lift",
    "control_dt": 0.05,
    "files": [{"name": "lift.hdf5", "bytes": 9346680, "sha256_of_ends": "c1e0a1831c4161eef0f3541e"}],
    "train_demos": 180,
    "valid_demos": 20,
    "versions": {"torch": "2.13.0"},
}


def evaluation(task, successes, seed):
    return {
        "task": task,
        "success_rate": successes / 10,
        "successes": successes,
        "episodes": 10,
        "interval": [0.49, 0.94],
        "mean_steps": 37.4,
        "control_dt": 0.05,
        "outcomes": [{"seed": seed}, {"seed": seed + 9}],
    }


def test_the_card_says_what_a_user_needs(tmp_path):
    """Guards against: a folder on a hub of which nobody knows task, data, units, or how to run it."""
    save_policy(make_policy(**{"data.files": ["/home/alice/lift.hdf5"]}), tmp_path, FACTS)
    text = (tmp_path / "README.md").read_text()
    for part in (
        "# Policy for lift",
        "| `front` | (16, 16, 3) | uint8 |",
        "such as: lift it or drop it now",
        "Actions: 7 columns in the demos' units and order, ",
        "one every 0.05 s",
        "- `lift.hdf5`, 9,346,680 bytes, SHA-256 of its first and last MiB c1e0a1831c4161ee",
        "180 demos for training, 20 held out",
        "robopolicy eval FOLDER --task lift",
        "window: 3",
        NO_RESULTS,
    ):
        assert part in text
    assert "alice" not in text
    assert text.startswith("---\nlibrary_name: robopolicy\n")


def test_evaluations_are_written_into_the_card(tmp_path):
    """Guards against: a success rate without its interval, of an older evaluation, or a README of the user's that is lost."""
    save_policy(make_policy(), tmp_path, FACTS)
    (tmp_path / "eval").mkdir()
    for number, values in enumerate(
        (evaluation("lift", 3, 0), evaluation("lift", 8, 10000), evaluation("stack", 1, 5))
    ):
        (tmp_path / "eval" / f"{number}.json").write_text(json.dumps(values))
        (tmp_path / "eval" / "notes.json").write_text("[1]")
        update_results(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| lift | 8 / 10 | 80 % | 49-94 % | 10000 to 10009 | 37 of 0.05 s |" in text
    assert "| stack | 1 / 10 | 10 %" in text
    assert "30 %" not in text
    assert NO_RESULTS not in text
    (tmp_path / "README.md").write_text("My own words.\n")
    update_results(tmp_path)
    assert (tmp_path / "README.md").read_text() == "My own words.\n"


def test_the_card_names_what_the_policy_needs(tmp_path):
    """Guards against: a policy of a plug-in, or behind a backbone, that its README calls complete."""
    facts = {**FACTS, "token_encoder": {"source": "/models/siglip"}}
    save_policy(make_policy(), tmp_path, facts)
    text = (tmp_path / "README.md").read_text()
    assert "It needs, in addition to robopolicy: model `siglip`." in text
    assert "eval FOLDER --task lift --backbone FOLDER_OR_NAME" in text
    assert "pip install robopolicy[vlm]" in text
    assert "/models" not in text
