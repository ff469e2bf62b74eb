"""Run folders on a hub: only what a run needs goes out, nothing of this machine; what comes in is examined first."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from robopolicy.cli import main
from robopolicy.components import ConfigError
from robopolicy.experiment import CheckpointError, load_policy, save_policy
from robopolicy.experiment.hubs import HubError
from robopolicy.experiment.privacy import identifying, scrubbed
from robopolicy.experiment.sharing import SharingError, pull, push
from tests.experiment.test_run_folder import make_policy, streamed

EXPORTED = Path(__file__).parents[1] / "control" / "tiny_export"


@pytest.fixture
def run(tmp_path):
    """A run folder as training and evaluation leave it, with everything in it that is nobody else's business."""
    folder = tmp_path / "alice smith" / "run"
    demos, backbone = tmp_path / "alice smith" / "lift.hdf5", tmp_path / "siglip"
    backbone.mkdir()
    policy = make_policy(**{"data.files": [str(demos), "s3://key:secret@lab/two.hdf5?X-Signature=abc"], "task": "lift"})
    encoder = {"source": str(backbone), "template": "{images}/tmp: {instruction}"}
    facts = {
        "task": "lift",
        "files": [{"name": "lift.hdf5", "bytes": 7}],
        "token_encoder": encoder,
        "demo_seeds": [1, 2],
    }
    save_policy(policy, folder, facts)
    result = {
        "task": "lift",
        "success_rate": 0.9,
        "successes": 9,
        "episodes": 10,
        "interval": [0.6, 0.98],
        "mean_steps": 40.0,
        "control_dt": 0.05,
        "outcomes": [{"seed": 10000, "instruction": "lift it", "success": True, "steps": 40}],
        "provenance": {
            "policy": str(folder),
            "environment": {"python": f"{tmp_path}/envs/bin/python -m x {tmp_path}/y"},
        },
    }
    (folder / "eval").mkdir()
    (folder / "eval" / "lift.json").write_text(json.dumps(result))
    (folder / "metrics.json").write_text(json.dumps({"provenance": facts, "train": [{"step": 1, "loss": 0.5}]}))
    (folder / "resume.ckpt").write_bytes(b"a torch file")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").write_text("host")
    (folder / "helper.py").write_text("raise SystemExit")
    (folder / "eval" / "report.html").write_text("<p>")
    return folder


def files_under(folder):
    """Relative names of all files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


SENT = ["README.md", "config.yaml", "eval/lift.json", "metrics.json", "policy.json", "policy.safetensors"]


def test_a_run_comes_back_as_the_same_policy(run, tmp_path):
    """Guards against: a hub's copy that acts otherwise, or lost its results or its training seeds."""
    url = f"file://{tmp_path}/hub/lift"
    sent = push(run, url)
    assert sorted(sent.files) == files_under(tmp_path / "hub" / "lift") == SENT
    assert sent.left_out == ["eval/report.html", "helper.py", "resume.ckpt", "tensorboard"]
    got = pull(url, tmp_path / "new" / "lift")
    assert files_under(tmp_path / "new" / "lift") == SENT
    assert got.files == sent.files
    assert torch.equal(streamed(load_policy(tmp_path / "new" / "lift")), streamed(load_policy(run)))
    assert json.loads((tmp_path / "new/lift/policy.json").read_text())["provenance"]["demo_seeds"] == [1, 2]
    assert os.listdir(tmp_path / "new") == ["lift"]


def test_nothing_of_this_machine_is_pushed(run, tmp_path):
    """Guards against: a user's name, folders, interpreter or storage keys on a public hub."""
    before = {name: (run / name).read_bytes() for name in files_under(run)}
    sent = push(run, "memory://private/lift")
    assert sorted(sent.changed) == ["config.yaml", "eval/lift.json", "metrics.json", "policy.json"]
    pull("memory://private/lift", tmp_path / "got")
    text = "".join((tmp_path / "got" / name).read_text() for name in SENT if not name.endswith(".safetensors"))
    for secret in (str(tmp_path), "alice", "secret", "X-Signature", "/envs"):
        assert secret not in text
    assert yaml.safe_load((tmp_path / "got/config.yaml").read_text())["data"]["files"] == ["lift.hdf5", "two.hdf5"]
    encoder = json.loads((tmp_path / "got/policy.json").read_text())["provenance"]["token_encoder"]
    assert encoder == {"source": "siglip", "template": "{images}/tmp: {instruction}"}
    assert json.loads((tmp_path / "got/eval/lift.json").read_text())["outcomes"][0]["instruction"] == "lift it"
    assert {name: (run / name).read_bytes() for name in files_under(run)} == before


def test_what_can_not_be_scrubbed_is_refused(run, tmp_path, monkeypatch):
    """Guards against: a key, the environment's secrets or the user's name in a file that people edit themselves."""
    monkeypatch.setenv("LAB_API_KEY", "correct horse")
    monkeypatch.setattr("getpass.getuser", lambda: "bsmith")
    card = (run / "README.md").read_text()
    for line, found in (
        ("Log in with hf_abcdefghijklmnopqrstuvwx", r"a key \(hf_abc"),
        ("Ask for correct horse.", "the environment variable LAB_API_KEY"),
        ("Trained by bsmith.", "your user name 'bsmith'"),
    ):
        (run / "README.md").write_text(f"{card}\n{line}\n")
        with pytest.raises(SharingError, match=rf"README\.md holds .*{found}.*; remove it, and push again") as no:
            push(run, "memory://refused/lift")
        assert "\n" not in str(no.value)
    assert push(run, "memory://bsmith/lift").files
    with pytest.raises(HubError, match="no such file or folder"):
        pull("memory://refused/lift", tmp_path / "got")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/my demos/lift.hdf5", "lift.hdf5"),
        ("~/lift.hdf5", "lift.hdf5"),
        ("C:\\Users\\alice\\lift.hdf5", "lift.hdf5"),
        ("python -m x --data=/home/alice/a.hdf5,/b/c.hdf5", "python -m x --data=a.hdf5,c.hdf5"),
        ("PATH=/usr/bin:/home/alice/bin", "PATH=bin:bin"),
        ("file:///home/alice/a.hdf5 and more", "a.hdf5 and more"),
        ("hf://alice/lift", "lift"),
        ("ws://10.0.0.5:8000", "ws://"),
        ("https://user:pass@host/a?b", "a"),
        ("https://arxiv.org/abs/1706.03762", "https://arxiv.org/abs/1706.03762"),
        ("google/siglip and/or 41 / 50, 1/2 </td>", "google/siglip and/or 41 / 50, 1/2 </td>"),
        ("lift the red cube", "lift the red cube"),
    ],
)
def test_a_path_keeps_only_its_last_part(text, shown):
    """Guards against: a path within a command line that stays, or a hub's name and a sentence that are cut."""
    assert scrubbed({"a": [text, 3, None]}) == {"a": [shown, 3, None]}


def test_the_users_home_and_existing_paths_are_found(tmp_path, monkeypatch):
    """Guards against: a path in a part of the config that decides how the policy computes, and so is not rewritten."""
    monkeypatch.setenv("HOME", "/home/bsmith")
    assert identifying("see /home/bsmith/x") == "your home folder /home/bsmith"
    assert identifying(f"key: {tmp_path}") == f"the path {tmp_path} of this machine"
    assert identifying("obs_keys: [/camera/image_raw]") is None


def test_an_exported_folder_travels_without_its_code(tmp_path):
    """Guards against: Python files of a stranger beside the graph."""
    shutil.copytree(EXPORTED, tmp_path / "exported")
    (tmp_path / "exported" / "runtime").mkdir()
    (tmp_path / "exported" / "runtime" / "types.py").write_text("print()")
    sent = push(tmp_path / "exported", "memory://exported")
    assert (sorted(sent.files), sent.left_out) == (["manifest.json", "policy.onnx"], ["runtime"])
    assert sorted(pull("memory://exported", tmp_path / "got").files) == ["manifest.json", "policy.onnx"]


def test_a_folder_that_is_no_policy_is_refused(run, tmp_path):
    """Guards against: a home folder pushed by a typo, and half of a push taken for a run."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SharingError, match=r"neither a run folder \(policy\.json\) nor .* it has notes\.txt"):
        push(tmp_path / "other", "memory://typo")
    with pytest.raises(SharingError, match="no such folder"):
        push(tmp_path / "rum", "memory://typo")
    push(run, f"file://{tmp_path}/hub")
    (tmp_path / "hub" / "policy.json").unlink()
    with pytest.raises(SharingError, match="its push did not finish"):
        pull(f"file://{tmp_path}/hub", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_nothing_is_overwritten(run, tmp_path):
    """Guards against: somebody's run lost under another of the same name, here or there."""
    push(run, f"file://{tmp_path}/hub")
    with pytest.raises(HubError, match="a policy is there already"):
        push(run, f"file://{tmp_path}/hub")
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(SharingError, match="exists; nothing is overwritten"):
            pull(f"file://{tmp_path}/hub", tmp_path / name)


def bomb(folder):
    (folder / "config.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n")


def larger(folder):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["memory"]["hidden"] = 10**7
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def deeper(folder):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["memory"]["layers"] = 10**9
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def pickled(folder):
    torch.save({"a": torch.ones(1)}, folder / "policy.safetensors")


def unknown(folder):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["memory"]["kind"] = "os.system"
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def listing(folder):
    (folder / "metrics.json").write_text("[1]")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (bomb, CheckpointError, "a YAML alias"),
        (larger, CheckpointError, r"has shape \(.*\); they need"),
        (deeper, CheckpointError, "memory.layers is 1000000000, more than its"),
        (pickled, CheckpointError, "not a safetensors file"),
        (unknown, ConfigError, "memory 'os.system' is unknown"),
        (listing, SharingError, "expected a JSON object, got list"),
    ],
)
def test_a_strangers_folder_is_examined_before_it_is_kept(run, tmp_path, damage, error, message):
    """Guards against: code, gigabytes of memory or hours of work from a folder of unknown origin."""
    push(run, f"file://{tmp_path}/hub")
    damage(tmp_path / "hub")
    with pytest.raises(error, match=message) as no:
        pull(f"file://{tmp_path}/hub", tmp_path / "new" / "got")
    assert "\n" not in str(no.value)
    assert ".unfinished" not in str(no.value)
    assert os.listdir(tmp_path / "new") == []


def test_a_pull_larger_than_its_limit_is_refused(run, tmp_path):
    """Guards against: a disk filled by a repository that is not what it seemed."""
    push(run, "memory://large")
    with pytest.raises(SharingError, match=r"GB \(--limit-gb\)"):
        pull("memory://large", tmp_path / "got", limit_gb=1e-6)
    assert not (tmp_path / "got").exists()


KILLED = """
import os, signal, sys
from robopolicy.experiment import hubs, sharing

read = hubs.Storage.read

def killed(self, name, place):
    read(self, name, place)
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

hubs.Storage.read = killed
sharing.pull(sys.argv[1], sys.argv[2])
"""


def test_a_killed_pull_leaves_nothing_under_the_name(run, tmp_path):
    """Guards against: half a policy that loads, or leftovers that stop the next pull."""
    push(run, f"file://{tmp_path}/hub")
    words = [
        sys.executable,
        "-c",
        KILLED,
        f"file://{tmp_path}/hub",
        str(tmp_path / "new" / "got"),
        "policy.safetensors",
    ]
    assert subprocess.run(words, check=False, timeout=600).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "new") == [".got.unfinished"]
    (tmp_path / "new" / ".got.unfinished" / "stale.txt").write_text("x")
    pull(f"file://{tmp_path}/hub", tmp_path / "new" / "got")
    assert os.listdir(tmp_path / "new") == ["got"]
    assert files_under(tmp_path / "new" / "got") == SENT


# -- Hugging Face's hub ----------------------------------------------------------------------------------------------------


class Repository:
    """Stands in for `HfApi`, with the parts of its signatures that are used; one repository in memory."""

    def __init__(self, cache):
        self.cache, self.commits, self.private, self.error = cache, [], None, None

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        """See `HfApi`."""
        self._answer()
        assert exist_ok
        self.private = private if not self.commits else self.private

    def create_commit(self, repo_id, operations, *, commit_message):
        """See `HfApi`."""
        files = dict(self.commits[-1]) if self.commits else {}
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationAdd):
                with operation.as_file() as file:
                    files[operation.path_in_repo] = file.read()
            else:
                del files[operation.path_in_repo]
        self.commits.append(files)

    def repo_info(self, repo_id, *, revision=None, files_metadata=False):
        """See `HfApi`."""
        self._answer()
        assert files_metadata
        files = self.commits[-1] if self.commits else {}
        names = [SimpleNamespace(rfilename=name, size=len(content)) for name, content in files.items()]
        return SimpleNamespace(sha=str(len(self.commits) - 1), siblings=names)

    def hf_hub_download(self, repo_id, filename, *, revision=None):
        """See `HfApi`."""
        path = self.cache / revision / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.commits[int(revision)][filename])
        return str(path)

    def _answer(self):
        if self.error:
            raise self.error


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The one repository that `hf://` names reach."""
    made = Repository(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def test_the_stand_in_takes_what_the_real_api_takes():
    """Guards against: tests that pass with arguments that `HfApi` has not."""
    import inspect

    for name in ("create_repo", "create_commit", "repo_info", "hf_hub_download"):
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        for parameter in inspect.signature(getattr(Repository, name)).parameters.values():
            assert (
                parameter.kind == real[parameter.name].kind or real[parameter.name].kind.name == "POSITIONAL_OR_KEYWORD"
            )


def test_a_push_to_hugging_face_is_one_private_commit(run, repository, tmp_path):
    """Guards against: a public repository by default, half a push, and results of an earlier policy beside the new one."""
    push(run, "hf://lab/lift")
    assert (len(repository.commits), repository.private) == (1, True)
    assert sorted(repository.commits[0]) == SENT
    repository.commits[0]["figure.png"] = b"of the lab"
    (run / "eval" / "lift.json").rename(run / "eval" / "again.json")
    push(run, "hf://lab/lift")
    assert len(repository.commits) == 2
    assert {"eval/again.json", "figure.png"} <= repository.commits[1].keys()
    assert "eval/lift.json" not in repository.commits[1]
    got = pull("hf://lab/lift", tmp_path / "got")
    assert got.left_out == ["figure.png"]
    assert torch.equal(streamed(load_policy(tmp_path / "got")), streamed(load_policy(run)))


def test_hugging_faces_errors_are_one_line(run, repository, tmp_path, capsys):
    """Guards against: a page of HTML and a traceback for a typo in a name, a missing login or no network."""
    import httpx

    for status, kind, message in (
        (404, RepositoryNotFoundError, "no such repository, or it is private or gated"),
        (403, HfHubHTTPError, "HTTP status 403; log in with an account that has access"),
        (500, HfHubHTTPError, "the hub refused the request with HTTP status 500"),
    ):
        answer = httpx.Response(status, request=httpx.Request("GET", "https://hub"), html="<p>\n</p>")
        repository.error = kind("many\nlines", response=answer)
        for verb in (["push", str(run), "hf://lab/lift"], ["pull", "hf://lab/lift", str(tmp_path / "got")]):
            assert main(verb) == 2
            assert message in capsys.readouterr().err
    repository.error = httpx.ConnectError("Name or service\nnot known")
    assert main(["pull", "hf://lab/lift", str(tmp_path / "got")]) == 2
    assert capsys.readouterr().err == (
        "robopolicy: pull: hf://lab/lift: failed (ConnectError: Name or service not known)\n"
    )
    for url in ("hf://lift", "hf://datasets/lab/lift", "lab/lift"):
        assert main(["pull", url, str(tmp_path / "got")]) == 2
        assert "expected hf://owner/name" in capsys.readouterr().err
    assert not (tmp_path / "got").exists()


def test_a_missing_package_names_its_extra(run, monkeypatch, capsys):
    """Guards against: `No module named 'huggingface_hub'`, which doesn't say how to get it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(run), "hf://lab/lift"]) == 2
    assert "needs the package huggingface_hub; pip install 'robopolicy[hub]'" in capsys.readouterr().err


def test_the_verbs_say_what_traveled(run, tmp_path, capsys):
    """Guards against: a push of which nobody knows what it made public."""
    assert main(["push", str(run), f"file://{tmp_path}/hub"]) == 0
    said = capsys.readouterr().out
    assert "left out  eval/report.html, helper.py, resume.ckpt, tensorboard" in said
    assert "scrubbed  config.yaml" in said
    assert "pushed    6 files, " in said
    assert main(["pull", f"file://{tmp_path}/hub", str(tmp_path / "got")]) == 0
    assert f"to {tmp_path / 'got'}" in capsys.readouterr().out


def test_names_from_a_hub_are_printed_escaped(run, tmp_path, capsys):
    """Guards against: a repository with a file whose name clears the screen, or writes into the shell's history."""
    push(run, f"file://{tmp_path}/hub")
    (tmp_path / "hub" / "\x1b[2J\x07").write_text("")
    assert main(["pull", f"file://{tmp_path}/hub", str(tmp_path / "got")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"\x1b[2J\x07" in said
