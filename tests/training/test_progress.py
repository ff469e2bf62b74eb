"""Where a run stands."""

from pathlib import Path

import pytest

from robopolicy.training.train import train
from tests.small_runs import metrics, small_config


def test_a_run_in_a_log_file_says_where_it_stands_at_every_validation(
    tiny_demos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against: ten minutes of silence, and then no word of the validation loss."""
    with caplog.at_level("INFO", logger="robopolicy.training.progress"):
        folder = train(small_config(tiny_demos), tmp_path / "run")
    lines = [record.getMessage() for record in caplog.records if record.name == "robopolicy.training.progress"]
    assert [line.split()[:4] for line in lines] == [["step", "4", "of", "8"], ["step", "8", "of", "8"]]
    assert f"valid {metrics(folder)['valid'][-1]['loss']:.4g}" in lines[-1]
