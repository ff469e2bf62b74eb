"""Keeps private facts out of what is published: paths are cut to file names, and what identifies the user is refused."""

import getpass
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+")
_SEGMENTS = r"(?:[^\s/\\'\",;:|<>()\[\]{}`]+[/\\]?)+"
PATH = re.compile(rf"(?<![\w.~/\\<])(?:(?:~[\w.-]*)?/|[A-Za-z]:[/\\]|\\\\){_SEGMENTS}")
"""A path that begins at the root, the home folder or a drive, anywhere in a text; does not match `and/or` and `</td>`."""
WHOLE_PATH = re.compile(r"(?:(?:~[\w.-]*)?/|[A-Za-z]:[/\\]|\\\\)[^\n]*")
"""A text that is such a path as a whole; folder names may hold spaces."""
TOKENS = re.compile(
    r"\b(?:hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{10,}|eyJ[\w-]{20,}\.[\w-]{20,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""Patterns of access keys of hubs, clouds and services."""
SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
NOBODY = {"root", "admin", "user", "users", "ubuntu", "debian", "runner", "robot", "home", "nobody", "app", "test"}
"""User names that do not identify a person and may be words of a config."""


def scrubbed(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """JSON-ready values in which every path, and every URL except plain web addresses, is replaced by its last part.

    Args:
        value: a text, a number, or mappings and lists of them; keys are not changed.
        keep: keys whose values are not changed.
    """
    if isinstance(value, Mapping):
        return {key: item if key in keep else scrubbed(item, keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item, keep) for item in value]
    if not isinstance(value, str):
        return value
    if WHOLE_PATH.fullmatch(value):
        return _last(value)
    urls = URL.findall(value)
    parts = [PATH.sub(lambda found: _last(found.group()), part) for part in URL.split(value)]
    return parts[0] + "".join(_public(url) + part for url, part in zip(urls, parts[1:], strict=True))


def identifying(text: str, public: str = "") -> str | None:
    """A description of the first private item in a text; None if there is none.

    Looked for: keys of services, values of environment variables that hold secrets, the user's home folder, paths that
    exist on this machine, and the user's name.

    Args:
        text: what is about to be published.
        public: text that is public anyway, such as the destination's URL; a user name in it is not private.
    """
    if found := TOKENS.search(text):
        return f"a key ({found.group()[:6]}...)"
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and len(value) >= 8 and value in text:
            return f"the value of the environment variable {name}"
    if (home := str(Path.home())) not in ("/", "/root") and home in text:
        return f"your home folder {home}"
    for path in PATH.findall(text):
        if len(PurePosixPath(path).parts) > 2 and os.path.lexists(os.path.expanduser(path)):
            return f"the path {path} of this machine"
    user = _user()
    if len(user) > 3 and user not in NOBODY and user not in public and re.search(rf"\b{re.escape(user)}\b", text):
        return f"your user name {user!r}"
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _last(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name or "/"


def _public(url: str) -> str:
    """A web address unchanged; the last part of any other URL, or of one with a login or a query."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and "@" not in parts.netloc and not parts.query:
        return url
    return PurePosixPath(parts.path).name or f"{parts.scheme}://"
