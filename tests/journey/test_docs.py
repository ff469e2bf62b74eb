"""Every command and snippet of docs/: the short test parses all of them, the slow one runs the pages of the journey."""

import importlib.util
import re
import shlex
import sys
import time
from pathlib import Path

import jsonargparse
import pytest

import robopolicy
from robopolicy import cli
from robopolicy.cli import parsing
from robopolicy.components import FAMILIES, kinds
from tests.journey.test_readme import ROOT, run, served
from tests.making import forget_plugins

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r'```(?P<language>\w*)(?: title="(?P<file>[^"]+)")?\n(?P<text>.*?)```', re.DOTALL)
COMMAND = re.compile(rf"^(?: {{4}})?(robopolicy (?:{'|'.join(cli.VERBS)})\b.*)$", re.MULTILINE)
JOURNEY = ("train", "evaluate", "memory", "extend", "deploy", "troubleshooting")
"""Pages that run from the files of the ones before."""
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]{2,}\b|\.\.\.")


class Parsed(Exception):  # noqa: N818
    """A command line was accepted."""


def commands(page: Path) -> list[str]:
    lines = COMMAND.findall(page.read_text())
    return [line for line in lines if not PLACEHOLDER.search(line.partition("#")[0])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_accepted(page, tmp_path, monkeypatch):
    """Guards against: a page with a verb, an option or a kind that no longer exists."""
    read = parsing.config_from_dict

    def instantiate(parser, values):
        if parser.prog.split()[-1] in ("train", "dagger"):
            return values
        raise Parsed

    def config_from_dict(tree, **options):
        tree.pop("plugins", None)
        for name in ("encoder", "memory", "losses", "augmentation"):
            if name in tree and "my_parts" in str(page.read_text()):
                tree.pop(name)
        read(tree, **options)
        raise Parsed

    monkeypatch.setattr(jsonargparse.ArgumentParser, "instantiate", instantiate)
    monkeypatch.setattr(parsing, "config_from_dict", config_from_dict)
    monkeypatch.setattr("robopolicy.components.load_plugins", lambda modules: None)
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)
    for fence in FENCE.finditer(page.read_text()):
        if fence["file"] and fence["language"] == "yaml":
            (tmp_path / fence["file"]).write_text(fence["text"])
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        try:
            code = cli.main(words)
        except Parsed:
            continue
        pytest.fail(f"{page.name}: {command}: exit code {code}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_exist_and_its_python_compiles(page):
    """Guards against: a link to a page that was renamed, and a snippet with a syntax error."""
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        made = target in ("reference/verbs.md", "reference/options.md", "reference/api.md")  # when the site is built
        assert made or (DOCS / target).exists(), f"{page.name} links to {target}"
    for fence in FENCE.finditer(text):
        if fence["language"] == "python":
            compile(fence["text"], f"{page.name}", "exec")


def test_every_page_is_in_the_menu_and_every_verb_on_a_page():
    """Guards against: a page that nobody finds, a verb that no page mentions."""
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if page.name not in menu] == []
    text = "".join(page.read_text() for page in PAGES) + (ROOT / "README.md").read_text()
    assert [verb for verb in cli.VERBS if not re.search(rf"robopolicy {verb}\b|`{verb}\b", text)] == []


def test_the_reference_names_every_verb_option_and_public_name():
    """Guards against: pages made from the code that leave something out, or end in a traceback where an extra is missing."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "_reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    verbs, options, api = reference.verbs_page(), reference.options_page(), reference.api_page()
    assert [verb for verb in cli.VERBS if f"## {verb}\n" not in verbs] == []
    assert "--run-dir" in verbs
    missing = [
        (family, kind) for family in FAMILIES for kind in kinds(family) if f"### {family} `{kind}`" not in options
    ]
    assert missing == []
    assert "| `weight_decay` | `0.01` |" in options
    assert [name for name in robopolicy.__all__ if f"## {name}\n" not in api] == []


def test_the_robot_and_the_encoder_of_the_pages_keep_their_contracts(tmp_path, monkeypatch):
    """Guards against: examples that a reader copies and the kits refuse."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for page, module in (("deploy", "my_robot"), ("extend", "my_encoder")):
        (text,) = [f["text"] for f in FENCE.finditer((DOCS / f"{page}.md").read_text()) if f["file"] == f"{module}.py"]
        (tmp_path / f"{module}.py").write_text(text)
    (kit,) = [f["text"] for f in FENCE.finditer((DOCS / "deploy.md").read_text()) if "testing.robot" in f["text"]]
    try:
        exec(kit, {})
        (encoders,) = [
            f["text"] for f in FENCE.finditer((DOCS / "extend.md").read_text()) if "EncoderCase" in f["text"]
        ]
        exec(encoders, {})
    finally:
        forget_plugins()
        for name in ("my_robot", "my_encoder"):
            sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_pages_of_the_journey_run_one_after_another(tmp_path, monkeypatch):
    """Guards against: docs whose commands fail for the reader who follows them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    namespace: dict[str, object] = {}
    for name in JOURNEY:
        for fence in FENCE.finditer((DOCS / f"{name}.md").read_text()):
            began = time.perf_counter()
            if fence["file"]:
                (tmp_path / fence["file"]).write_text(fence["text"])
            elif fence["language"] == "python":
                exec(fence["text"], namespace)
            else:
                for command in COMMAND.findall(fence["text"]):
                    run_command(command, tmp_path)
            print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def run_command(command: str, folder: Path) -> None:
    process = run(command, folder)
    if " serve " in command:
        assert served(process), command
        return
    shown, _ = process.communicate(timeout=600)
    assert process.returncode in ((0, 1) if " run " in command else (0,)), f"{command}\n{shown}"
