"""`robopolicy serve` and `export` from their arguments."""

import signal
import ssl
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.client import PolicyClient
from tests.serving import self_signed

EXPORTED = Path(__file__).parent / "robot_export"
SERVE = "import sys; from robopolicy.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_an_exported_folder_is_served_until_it_is_told_to_end(scheme, tmp_path):
    """Guards against: a robot computer's server without a training stack, and a printed address that no client can use."""
    command, trust = [sys.executable, "-c", SERVE, "serve", str(EXPORTED), "--port", "0"], None
    if scheme == "wss":
        certificate, key = self_signed(tmp_path)
        command += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        trust = ssl.create_default_context(cafile=str(certificate))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if line.startswith(f"serving   {scheme}://")).split()[1]
        with PolicyClient(address, None, tls=trust) as client:
            obs = {"ee_pose": np.zeros(7), "gripper": np.zeros(1), "prompt": "lift the red cube"}
            assert client.infer(obs)["actions"].shape == (4, 7)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", str(EXPORTED), "--host", "0.0.0.0"], "give --api-key-file, or listen on 127.0.0.1"),
        (["serve", str(EXPORTED), "--mapping", "spot"], "key_mapping 'spot' is unknown; choose one of aloha"),
        (["serve", "nowhere"], "nowhere"),
        (["export", "nowhere", "--out", "OUT"], "nowhere"),
        (["export", str(EXPORTED), "--out", "OUT"], "robot_export"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, words, tmp_path, capsys):
    """Guards against: a traceback, or a server that is open to everyone."""
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
