"""What the verbs share of argument parsing."""

import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from robopolicy.cli import main
from robopolicy.cli.parsing import REQUIRED, at_least, execution_options, parse, parse_experiment, verb_parser
from robopolicy.components import ConfigError


@pytest.mark.parametrize("flags_first", [True, False])
def test_the_command_line_goes_before_the_file_in_any_order(tmp_path: Path, flags_first: bool) -> None:
    """Guards against: an option on the command line that the file overrides because it comes later."""
    parser = verb_parser("tried", "A verb.")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    (tmp_path / "one.yaml").write_text("episodes: 5\nseed: 7\n")
    (tmp_path / "other.yaml").write_text("episodes: 6\n")
    flags = ["--episodes", "9"]
    files = ["--config", str(tmp_path / "one.yaml"), "--config", str(tmp_path / "other.yaml")]
    options = parse(parser, flags + files if flags_first else files + flags)
    assert (options.episodes, options.seed) == (9, 7)
    assert parse(parser, files).episodes == 6
    assert parse(parser, [*flags, f"--config={tmp_path / 'one.yaml'}"]).episodes == 9
    with pytest.raises(ConfigError, match="--config"):
        parse(parser, [*flags, "--config"])


def test_an_unknown_option_of_a_config_file_is_refused_with_the_files_name(tmp_path: Path) -> None:
    """Guards against: a typo in YAML whose error doesn't name the file."""
    parser = verb_parser("tried", "A verb.")
    parser.add_argument("--num-envs", type=int, default=1)
    (tmp_path / "typo.yaml").write_text("num_env: 5\n")
    with pytest.raises(ConfigError, match=r"typo\.yaml: Option 'num_env'"):
        parse(parser, ["--config", str(tmp_path / "typo.yaml")])
    with pytest.raises(ConfigError, match="--num-envs is few; expected an integer"):
        parse(parser, ["--num-envs", "few"])


def test_a_missing_or_mistyped_option_is_named_as_it_is_typed() -> None:
    """Guards against: "required: robot" for --robot, and a typo whose correct spelling the user has to look up."""
    parser = verb_parser(
        "tried", "A verb.", ("policy", str, REQUIRED, "a folder"), ("--run-dir", str, REQUIRED, "a folder")
    )
    with pytest.raises(ConfigError, match="missing: policy, --run-dir; see robopolicy tried --help"):
        parse(parser, [])
    with pytest.raises(ConfigError, match="unknown option: --run_dir runs; did you mean --run-dir"):
        parse(parser, ["lift", "--run-dir", "x", "--run_dir", "runs"])


def test_a_short_option_is_the_experiments_own(tmp_path: Path) -> None:
    """Guards against: a config without `max_steps` that is refused before --max-steps is looked at."""
    parser = verb_parser("tried", "A verb.", ("--max-steps", int | None, None, "short"))
    (tmp_path / "long.yaml").write_text("training: {max_steps: null, passes: 100}\nmax_steps: 8\n")
    files, short = [f"--config={tmp_path / 'long.yaml'}"], {"max_steps": "training.max_steps"}
    assert parse_experiment(parser, files, short)[1].training.max_steps == 8
    words = ["--training.passes", "null", "--max-steps=5"]
    assert parse_experiment(parser, files + words, short)[1].training.max_steps == 5
    with pytest.raises(ConfigError, match="max_steps must be an integer or null, got few"):
        parse_experiment(parser, ["--max-steps", "few"], short)


def test_help_says_what_an_execution_option_does() -> None:
    """Guards against: help that lists the strategies of an option, but not its meaning."""
    shown = {name: text for name, _, _, text in execution_options()}
    assert shown["--execution.replan_every"].startswith("Control steps after which")
    assert "For freeze, rtc." in shown["--execution.latency_s"]


def test_a_number_below_what_makes_sense_is_refused_by_the_options_name() -> None:
    """Guards against: errors in MuJoCo's words, such as `nsim must be positive` for --num-envs."""
    parser = verb_parser("tried", "A verb.")
    parser.add_argument("--num-envs", type=int, default=1)
    at_least(parse(parser, ["--num-envs", "1"]), 1, "num_envs")
    with pytest.raises(ConfigError, match="--num-envs is 0; expected 1 or more"):
        at_least(parse(parser, ["--num-envs", "0"]), 1, "num_envs")


@pytest.mark.parametrize("name", ["null", "~", "NULL", "1"])
def test_a_file_may_have_any_name(name: str) -> None:
    """Guards against: `--json null` and `--json ~`, read as no file at all, so that the result is lost."""
    parser = verb_parser("tried", "A verb.", ("--json", str | None, None, "a file"))
    assert parse(parser, ["--json", name]).json == name
    assert parse(parser, []).json is None


def test_a_null_in_a_config_file_is_no_file(tmp_path: Path) -> None:
    """Guards against: `json: null` in YAML, which says that there is none, refused or taken for a name."""
    parser = verb_parser("tried", "A verb.", ("--json", str | None, None, "a file"))
    (tmp_path / "a.yaml").write_text("json: null\n")
    assert parse(parser, ["--config", str(tmp_path / "a.yaml")]).json is None


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """Guards against: "Broken pipe" or a traceback after `robopolicy ... | head`."""
    command = [sys.executable, "-m", "robopolicy", "components"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_an_interrupt_that_is_lost_in_a_callback_still_ends_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against: a Ctrl-C without effect, since Python drops what a weak reference's callback raises."""

    class Thing:
        pass

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    def components(_: object) -> int:
        thing = Thing()
        watched = weakref.ref(thing, interrupt)
        del thing
        assert watched() is None
        time.sleep(20)
        return 0

    monkeypatch.setattr("robopolicy.cli.components.components", components)
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert main(["components"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 15
