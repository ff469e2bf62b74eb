"""The registry: kinds are found by file name, options are checked, mistakes are one line."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from robopolicy.components import (
    ConfigError,
    Options,
    build,
    component,
    component_of,
    kinds,
    load_plugins,
    option,
    options_from,
    register,
)
from tests.making import forget_plugins

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class GatedOptions:
    """Options of a kind that only these tests have."""

    width: int = 8
    """Columns."""


@pytest.fixture(autouse=True)
def own_registry():
    yield
    forget_plugins()


def test_a_registered_kind_is_built_from_its_options():
    """Guards against: a component that is known by name but can't be made."""

    @register("memory", "gated", GatedOptions)
    def make(options, inputs):
        return options.width, inputs

    assert build(GatedOptions(width=3), 5) == (3, 5)
    assert component_of(GatedOptions()).kind == "gated"
    assert "gated" in kinds("memory")


def test_an_unknown_kind_lists_the_known_ones():
    """Guards against: a typo that ends in a traceback or in a default."""
    register("memory", "gated", GatedOptions)(lambda options: None)
    with pytest.raises(ConfigError, match=r"memory 'gate' is unknown; choose one of .*gated"):
        component("memory", "gate")


def test_an_unknown_family_lists_the_known_ones():
    """Guards against: a plug-in that registers where nothing looks."""
    with pytest.raises(ConfigError, match="unknown component family 'cell'; choose one of encoder"):
        register("cell", "gated", GatedOptions)


def test_an_unknown_option_lists_the_known_ones():
    """Guards against: an option that is given and silently ignored."""
    register("memory", "gated", GatedOptions)(lambda options: None)
    with pytest.raises(ConfigError, match=r"--memory.hidden; the options of memory 'gated' are: width"):
        options_from("memory", "gated", {"hidden": 3})


def test_a_mapping_is_given_as_text():
    """Guards against: `{}` taken for a list with one name, so that no option leaves out the groups of a config file."""
    groups = {text: options_from("encoder", "keys", {"groups": text}).groups for text in ("{}", "{cube: [a, b]}")}
    assert [{**found} for found in groups.values()] == [{}, {"cube": ("a", "b")}]


def test_two_plug_ins_with_one_name_are_refused(tmp_path, monkeypatch):
    """Guards against: the later of two plug-ins silently replacing the earlier one."""
    source = "from robopolicy.components import register\n@register('memory', 'twin')\ndef make(options): ...\n"
    for name in ("plugin_first", "plugin_second"):
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["plugin_first"])
    with pytest.raises(ConfigError, match=r"'twin' is provided twice: by plugin_first .* and by plugin_second"):
        load_plugins(["plugin_second"])


def test_a_plug_in_in_the_current_folder_is_found(tmp_path):
    """Guards against: the documentation's `--plugins my_parts`, which an installed `robopolicy` did not find."""
    (tmp_path / "my_parts.py").write_text("import robopolicy\nprint('imported', robopolicy.__name__)\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('hides torch')")
    program = (
        "import sys; sys.path = [p for p in sys.path if p]\n"  # as a console script starts
        "from robopolicy.components import load_plugins; load_plugins(['my_parts']); import torch"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("imported robopolicy\n", 0), done.stderr


def test_a_plug_in_that_fails_to_import_is_named(tmp_path, monkeypatch):
    """Guards against: a traceback out of a stranger's module."""
    (tmp_path / "plugin_broken.py").write_text("raise RuntimeError('no such device')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="plug-in plugin_broken can't be imported: RuntimeError: no such device"):
        load_plugins(["plugin_broken"])
    with pytest.raises(ConfigError, match="plug-in plugin_absent can't be imported: ModuleNotFoundError"):
        load_plugins(["plugin_absent"])


def test_one_options_class_belongs_to_one_kind():
    """Guards against: options of an unknown kind, since two kinds share the dataclass."""
    register("memory", "gated", GatedOptions)(lambda options: None)
    with pytest.raises(ConfigError, match="GatedOptions holds the options of memory 'gated'"):
        register("memory", "other", GatedOptions)(lambda options: None)


@dataclass(frozen=True)
class RangedOptions(Options):
    """Options whose numbers have a range."""

    max_width: int = option(8, ">= 1")
    """Columns."""
    shares: tuple[float, ...] = option((), "0 .. 1")
    """One for each column."""


@dataclass(frozen=True)
class NarrowOptions(RangedOptions):
    """The same with another default."""

    max_width: int = 2
    """Columns."""


def test_an_option_out_of_its_range_is_refused():
    """Guards against: a range that a subclass loses with a new default, and a message that names no option to change."""
    with pytest.raises(ConfigError, match="--max-width must be >= 1, got 0"):
        NarrowOptions(max_width=0)
    register("augmentation", "ranged", RangedOptions)(lambda options: None)
    with pytest.raises(ConfigError, match=r"--augmentation.ranged.shares must be 0 .. 1, got \[0.5, 1.5\]"):
        RangedOptions(shares=(0.5, 1.5))
    assert NarrowOptions(shares=(0.5,)).max_width == 2


def test_entry_points_are_found_and_imported_when_asked_for(tmp_path, monkeypatch):
    """Guards against: an installed plug-in that needs a flag, or is imported although nobody asked for it."""
    (tmp_path / "plugin_installed.py").write_text(
        "from robopolicy.components import register\n@register('memory', 'matrix')\ndef make(options): return 'made'\n"
    )
    info = tmp_path / "installed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robopolicy.components]\nmemory.matrix = plugin_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "matrix" in kinds("memory")
    assert "plugin_installed" not in sys.modules
    found = component("memory", "matrix")
    assert found.make(None) == "made"
    assert found.origin == "installed 1.0"
