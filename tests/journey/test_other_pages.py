"""The commands and snippets of the pages that are not part of the journey of `test_docs.py`, and a list of who runs which."""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.cli import test_learn
from tests.journey import test_readme, test_vlm
from tests.journey.test_docs import COMMAND, DOCS, FENCE, JOURNEY, PAGES, run_command
from tests.journey.test_readme import ROOT, SMALLER
from tests.serving import running_server, self_signed

INDENTED = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)
LINE = re.compile(
    r"^(?:robopolicy|robopolicy-to-lerobot|lerobot-\w+|torchrun|srun|python|pip|PYTHONPATH=\S+) .*$", re.MULTILINE
)
TESTS = {
    **dict.fromkeys(JOURNEY, "tests/journey/test_docs.py"),
    **dict.fromkeys(("index", "simulator", "serving", "scale"), "tests/journey/test_other_pages.py"),
    "learn": "tests/cli/test_learn.py",
    "lerobot": "tests/integrations/test_lerobot_environment.py",
    "robots": "tests/journey/test_robots_page.py",
    "vlm": "tests/journey/test_vlm.py",
}
"""Page -> the test that runs its commands and snippets."""
ELSEWHERE = {
    "pip install -c constraints.txt '.[all]'": "`make env`, with which every test runs",
    "pip install . integrations/lerobot": "tests/integrations/test_lerobot_environment.py installs both",
    "pip install numpy onnxruntime ruckig": "tests/test_install.py",
    "PYTHONPATH=exported/runtime python drive.py": "tests/test_install.py",
    "robopolicy push runs/lift hf://OWNER/lift": "a network and an account; tests/experiment/test_sharing.py has a stand-in",
    "robopolicy pull hf://OWNER/lift@main runs/lift_of_owner": "likewise",
    "robopolicy profile ARM.urdf": "tests/control/test_profiles.py, with arms of its own",
    "robopolicy run exported --robot my_arm:MyArm": "tests/journey/test_robots_page.py: the kit, and make_robot",
    "robopolicy run exported/ --robot ws://10.0.0.7:8100": "tests/journey/test_robots_page.py, at 127.0.0.1",
    "robopolicy run --server 10.0.0.5:8000": "tests/cli/test_drivers.py and tests/control/test_rosbridge.py, at 127.0.0.1",
    "srun torchrun": "a cluster; tests/training/test_distributed.py starts two processes",
}
"""Beginning of a line that its page's test leaves out -> why, and what runs it."""


def indented(page: Path) -> list[str]:
    """The blocks of a page that are set as code by four spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [textwrap.dedent(block) for block in INDENTED.findall(text)]


def lines(page: Path) -> list[str]:
    """Every command line of a page, continued lines joined."""
    blocks = [fence["text"] for fence in FENCE.finditer(page.read_text()) if fence["language"] in ("", "bash")]
    text = "\n".join([*blocks, *indented(page)]).replace("\\\n", " ")
    return LINE.findall(text)


def left_out(line: str) -> bool:
    return any(line.startswith(beginning) for beginning in ELSEWHERE)


def test_every_command_of_every_page_is_run_by_a_test():
    """Guards against: a page, or a line added to one, that no test ever runs."""
    fenced = {
        page.stem: "".join(f["text"] for f in FENCE.finditer(page.read_text()) if not f["file"]) for page in PAGES
    }
    runs = {name: COMMAND.findall(fenced[name]) for name in (*JOURNEY, "robots")}
    runs |= {"learn": test_learn.COMMANDS, "vlm": test_vlm.COMMANDS}
    runs |= {name: lines(DOCS / f"{name}.md") for name in ("index", "lerobot", "scale", "serving", "simulator")}
    unused = set(ELSEWHERE)
    for page in PAGES:
        found = [line.strip() for line in lines(page)]
        unused -= {beginning for beginning in unused for line in found if line.startswith(beginning)}
        run = {line.strip() for line in runs.get(page.stem, ())}
        assert [line for line in found if line not in run and not left_out(line)] == [], page.name
        assert not found or (ROOT / TESTS[page.stem]).is_file()
    assert unused == set(), "lines that are no longer on a page"
    readme = [
        line for block in FENCE.finditer((ROOT / "README.md").read_text()) for line in LINE.findall(block["text"])
    ]
    run = {
        *test_readme.COMMANDS,
        "pip install -c constraints.txt '.[all]'   # from a checkout, Python >= 3.11; the versions that were tested together",
    }
    assert [line for line in readme if line not in run] == []


def command_in(folder: Path, line: str) -> None:
    """Run one line of the pages simulator, index, scale or serving, made small and on the CPU."""
    line = line.partition("  #")[0].strip()
    if " serve " in line or " run " in line:
        run_command(line, folder)
        return
    smaller = {
        **SMALLER,
        "eval": [*SMALLER["eval"], "--num-envs", "2"],
        "collect": [*SMALLER["collect"], "--num-envs", "2"],
    }
    verb = re.search(r"robopolicy\)? (\w+)", line)[1]
    words = [re.sub(r"^8$", "2", word) for word in shlex.split(line.replace("$(which robopolicy)", "robopolicy"))]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words] + smaller.get(verb, [])
    words += ["--device", "cpu"] if "cuda" in words else []
    words[: words.index("robopolicy") + 1] = {
        "robopolicy": [sys.executable, "-m", "robopolicy"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "robopolicy"],
    }[words[0]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_pages_about_the_simulator_servers_and_machines_run(tmp_path, monkeypatch):
    """Guards against: commands outside the journey that are only parsed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "key").write_text("a key of sixteen characters or more")
    self_signed(tmp_path)
    made_again = {"simulator": "lift.hdf5", "scale": "runs/lift"}  # these pages write what is there already
    for name in ("index", "serving", "simulator", "scale"):
        if name == "serving":
            command_in(tmp_path, "robopolicy export runs/lift --format onnx --out exported")
        if name in made_again:
            Path(made_again[name]).rename(made_again[name] + ".before")
        for line in lines(DOCS / f"{name}.md"):
            if not left_out(line):
                command_in(tmp_path, line)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_snippets_of_the_simulator_page_run():
    """Guards against: calls of `gymnasium.make` and `make_vec` that no longer exist."""
    one, many = [block for block in indented(DOCS / "simulator.md") if "gymnasium." in block]
    names: dict[str, object] = {}
    exec(one.replace("num_envs=128", "num_envs=2"), names)
    assert names["worlds"].num_envs == 2
    *lines_before, last = many.strip().splitlines()
    names |= {"actions": np.zeros((2, 7), np.float32)}
    exec("\n".join(lines_before).replace("1024", "2").replace('"cuda"', '"cpu"'), names)
    assert len(names["reward"]) == 2
    names["env"] = names["worlds"]
    names["env"].reset(seed=[0, 1])
    exec(last, names | {"done": np.array([True, False])})


def test_the_client_of_the_serving_page_works(tmp_path, monkeypatch):
    """Guards against: the lines that everybody copies to the robot."""
    shutil.copy(ROOT / "robopolicy" / "client.py", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (text,) = [
        fence["text"] for fence in FENCE.finditer((DOCS / "serving.md").read_text()) if fence["language"] == "python"
    ]
    (tmp_path / "test.yaml").write_text("keys: {qpos: {from: ee_pose, columns: [0, 3]}}")
    with running_server(mapping=tmp_path / "test.yaml") as server:
        text = text.replace('"10.0.0.5", 8000, api_key="..."', f'"127.0.0.1", {server.port}')
        seen = {"ee_pose": np.ones(7), "front": np.zeros((8, 8, 3), np.uint8), "prompt": "lift"}
        names = {"pose": seen["ee_pose"], "image": seen["front"], "observation": seen}
        try:
            exec(text, names)
        finally:
            sys.modules.pop("client", None)
            names["client"].close()
    assert names["actions"].shape == (4, 5)
    assert names["action"].shape == (5,)
