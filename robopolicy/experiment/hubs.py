"""Remote folders: a repository on Hugging Face's hub, or a folder of any storage that fsspec supports."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robopolicy.demos.remote import filesystem_of, listed
from robopolicy.types import DemoFormatError, one_line

HUGGING_FACE = "hf://"
REPOSITORY = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?")

NAME = r"(?!\.)[\w.+ =:-]+"
SHARED = re.compile(
    rf"(?:groups/{NAME}/)?(?:README\.md|config\.yaml|policy\.json|policy\.safetensors|metrics\.json|eval/{NAME}\.json|"
    rf"backbone/{NAME}\.(?:safetensors|json|txt|model|jinja))|manifest\.json|policy\.onnx|tokens\.json"
)
"""The files that are copied: what a run needs, its training curves, its evaluations, and its own backbone."""

Content = bytes | Path
"""A file's content, or the file that holds it."""


class HubError(ValueError):
    """A hub can't be reached or refuses a request; the message is one line."""


def open_hub(url: str) -> "HuggingFace | Storage":
    """The folder at a URL; no network access yet.

    Raises:
        HubError: the URL names no hub.
        ImportError: the package for this hub is missing.
    """
    if "://" not in url:
        raise HubError(
            f"{url}: not a URL; expected hf://owner/name, or one that fsspec supports, such as s3://bucket/folder"
        )
    return HuggingFace(url) if url.startswith(HUGGING_FACE) else Storage(url)


class HuggingFace:
    """A model repository of Hugging Face's hub, with the login that `huggingface_hub` keeps."""

    def __init__(self, url: str) -> None:
        found = REPOSITORY.fullmatch(url)
        if not found:
            raise HubError(f"{url}: expected hf://owner/name or hf://owner/name@revision")
        try:
            import huggingface_hub
        except ImportError as error:
            raise ImportError(f"{url} needs the package huggingface_hub; pip install 'robopolicy[hub]'") from error
        self.url, (self.repository, self.revision) = url, found.groups()
        self._library = huggingface_hub
        self._api: Any = huggingface_hub.HfApi()

    def sizes(self) -> dict[str, int]:
        """Name -> size [bytes] of every file. Later calls read the same commit, so that all files are of one push."""
        with self._one_line():
            info = self._api.repo_info(self.repository, revision=self.revision, files_metadata=True)
        self.revision = info.sha
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def read(self, name: str, place: Path) -> None:
        """Download one file to a local path, through the library's own cache."""
        with self._one_line():
            cached = self._api.hf_hub_download(self.repository, name, revision=self.revision)
        shutil.copyfile(cached, place)

    def write(self, files: Mapping[str, Content], public: bool) -> None:
        """Upload files in one commit, which also deletes older files of a push; a new repository is private unless `public`."""
        if self.revision is not None:
            raise HubError(f"{self.url}: a push makes a new commit; leave out @{self.revision}")
        add = self._library.CommitOperationAdd
        with self._one_line():
            self._api.create_repo(self.repository, private=not public, exist_ok=True)
            there = self._api.repo_info(self.repository, files_metadata=True).siblings or ()
            stale = [
                file.rfilename for file in there if SHARED.fullmatch(file.rfilename) and file.rfilename not in files
            ]
            operations = [add(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
            operations += [self._library.CommitOperationDelete(path_in_repo=name) for name in stale]
            self._api.create_commit(self.repository, operations, commit_message="robopolicy push")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn every error of the library and the network into a one-line `HubError`."""
        errors = self._library.errors
        try:
            yield
        except errors.RepositoryNotFoundError as error:
            raise HubError(
                f"{self.url}: no such repository, or it is private or gated and this login may not see it (`hf auth login`)"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise HubError(f"{self.url}: no such revision") from error
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            hint = "; log in with an account that has access (`hf auth login`)" if status in (401, 403) else ""
            raise HubError(f"{self.url}: the hub refused the request with HTTP status {status}{hint}") from error
        except Exception as error:
            raise HubError(f"{self.url}: failed ({type(error).__name__}: {one_line(error)[:300]})") from error


class Storage:
    """A folder of a storage that fsspec supports."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._filesystem, self._root = filesystem_of(url)
        except DemoFormatError as error:
            raise HubError(str(error)) from error

    def sizes(self) -> dict[str, int]:
        """Name -> size [bytes] of every file."""
        with self._one_line():
            files = listed(self._filesystem, self._root, self.url)
        return {name.removeprefix(f"{self._root}/"): int(info.get("size") or 0) for name, info in files.items()}

    def read(self, name: str, place: Path) -> None:
        """Download one file to a local path."""
        with self._one_line():
            self._filesystem.get_file(f"{self._root}/{name}", str(place))

    def write(self, files: Mapping[str, Content], public: bool) -> None:
        """Upload files, in this order; refused if the last file, which marks a complete folder, exists already."""
        if public:
            raise HubError(f"{self.url}: --public is for hf://; here the storage decides who may read")
        last = f"{self._root}/{[*files][-1]}"
        with self._one_line():
            taken = self._filesystem.exists(last)
        if taken:
            raise HubError(f"{self.url}: a policy is there already and nothing is overwritten; give another URL")
        for name, content in files.items():
            path = f"{self._root}/{name}"
            with self._one_line():
                self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
                if isinstance(content, bytes):
                    self._filesystem.pipe_file(path, content)
                else:
                    self._filesystem.put_file(str(content), path)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise HubError(
                one_line(error)[:300] if isinstance(error, DemoFormatError) else f"{self.url}: {one_line(error)[:300]}"
            ) from error
