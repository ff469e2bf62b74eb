"""Which files a policy was trained on."""

import hashlib
from pathlib import Path
from typing import Any

FINGERPRINT_BYTES = 2**20
"""A file's fingerprint is that of its size, its first and its last MiB: the same in a second for a terabyte."""


def fingerprint(path: Path) -> dict[str, Any]:
    """Size [bytes] and a hash of a file, or of a folder's file names and sizes."""
    digest = hashlib.sha256()
    if path.is_dir():
        sizes = {str(item.relative_to(path)): item.stat().st_size for item in sorted(path.rglob("*")) if item.is_file()}
        digest.update(repr(sizes).encode())
        return {"bytes": sum(sizes.values()), "sha256_of_names": digest.hexdigest()}
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(FINGERPRINT_BYTES))
        file.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(file.read())
    return {"bytes": size, "sha256_of_ends": digest.hexdigest()}
