"""`robopolicy components`, and plug-ins named on the command line."""

import pytest

from robopolicy.cli import main
from tests.making import forget_plugins

PLUGIN = '''
from dataclasses import dataclass
from robopolicy.components import register

@dataclass(frozen=True)
class ConstantOptions:
    value: float = 0.5

@register("memory", "constant", ConstantOptions)
def make(options, width):
    """A memory that forgets everything."""
'''


@pytest.fixture(autouse=True)
def own_registry():
    yield
    forget_plugins()


def test_families_and_kinds_are_listed(capsys):
    """Guards against: a kind that exists and can't be found without reading the code."""
    assert main(["components"]) == 0
    shown = capsys.readouterr().out
    (memories,) = [line for line in shown.splitlines() if line.startswith("memory ")]
    assert {"gru,", "lstm,", "none,"} <= set(memories.split())
    assert main(["components", "memory"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "layers = 2 Layers of the cell." in shown
    assert "recurrent = 128 Width of the LSTM;" in shown
    assert "dropout = 0.0 Probability of dropout" in shown  # a field of the common base


def test_an_unknown_family_is_one_line(capsys):
    """Guards against: an empty list for a misspelled family."""
    assert main(["components", "memories"]) == 2
    assert "unknown component family 'memories'; choose one of encoder" in capsys.readouterr().err


def test_a_plug_in_is_listed_with_its_origin(tmp_path, monkeypatch, capsys):
    """Guards against: a plug-in that only `train` can use."""
    (tmp_path / "constant_memory.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["components", "memory", "--plugins", "constant_memory"]) == 0
    assert "constant   [constant_memory]   A memory that forgets everything." in capsys.readouterr().out
    assert main(["components", "memory", "--plugins", "no_such_module"]) == 2
    assert "plug-in no_such_module can't be imported" in capsys.readouterr().err
