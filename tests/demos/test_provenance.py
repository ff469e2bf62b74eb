"""Which files a policy was trained on."""

from robopolicy.demos.provenance import fingerprint


def test_a_fingerprint_changes_with_the_content(tmp_path):
    """Two files of one name must not pass for each other."""
    path = tmp_path / "a"
    path.write_bytes(bytes(3 * 2**20))
    before = fingerprint(path)
    path.write_bytes(bytes(3 * 2**20 - 1) + b"x")
    assert fingerprint(path) != before
    assert fingerprint(tmp_path)["bytes"] == 3 * 2**20
