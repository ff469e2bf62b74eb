"""Where images and tokens are held."""

import logging

import torch

from robopolicy.demos.placement import MEMORY_SHARE, choose_placement


def test_the_placement_is_chosen_by_size_and_said(monkeypatch, caplog):
    """Guards against: a set larger than memory that is swapped, or a placement that the user doesn't learn."""
    monkeypatch.setattr("robopolicy.demos.placement._free_host_bytes", lambda: 1000)
    with caplog.at_level(logging.INFO):
        assert choose_placement("auto", int(1000 * MEMORY_SHARE), torch.device("cpu")) == "device"
        assert choose_placement("auto", int(1000 * MEMORY_SHARE) + 1, torch.device("cpu")) == "disk"
        assert choose_placement("host", 10**15, torch.device("cpu")) == "host"
        assert "placement disk" in caplog.text
        caplog.clear()
        assert choose_placement("auto", 0, torch.device("cpu")) == "device"
    assert not caplog.text, "nothing to place, nothing to say"
