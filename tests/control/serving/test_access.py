"""Keys and addresses."""

import pytest

from robopolicy.control.serving.access import is_loopback, key_fits, read_api_key

KEY = "a-key-of-16-chars"


def test_key_files_are_read_and_weak_ones_refused(tmp_path):
    """Guards against: an empty file as the key, which would let everyone in."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_api_key(tmp_path / "key") == KEY
    for weak in ("", "\n", "short\n"):
        (tmp_path / "key").write_text(weak)
        with pytest.raises(ValueError, match="expected a key of 16 or more"):
            read_api_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("localhost", True), ("127.8.8.8", True), ("0.0.0.0", False), ("", False)]
)
def test_only_addresses_of_this_machine_alone_are_loopback(host, here):
    """Guards against: a server that listens on every interface because the address is empty, taken for a local one."""
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    ("headers", "fits"),
    [
        ([f"Api-Key {KEY}"], True),
        ([], False),
        ([f"Api-Key {KEY}"] * 2, False),
        (["Api-Key \udcff"], False),
        ([KEY], False),
    ],
)
def test_only_the_one_right_header_fits(headers, fits):
    """Guards against: a second header, checked by a proxy in front, that is not the one read here."""
    assert key_fits(headers, KEY) is fits
    assert key_fits(headers, None)
