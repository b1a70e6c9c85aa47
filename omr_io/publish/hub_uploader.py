"""A dataset repository of the Hugging Face Hub as an `Uploader`, through huggingface_hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from omr_io.errors import ConfigError, SourceError, Where
from omr_io.publish.set_files import LocalFile, check_target
from omr_io.publish.uploader import RemoteState
from omr_io.remote.hub import HubPath, ask, need_hub, open_hub, parse, pin
from omr_io.remote.retries import RetryPolicy
from omr_io.remote.urls import scheme_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

T = TypeVar("T")
_STATE_NAMES = 100  # paths of one question


class HubUploader:
    """Pushes to hf://datasets/OWNER/NAME[/path].

    Args:
        url: without a revision.
        revision: the branch; None is main.
        policy: of trying again.

    Attributes:
        path: the folder in the repository, "" for its root. url: without a slash at its end.

    Raises:
        ConfigError: the URL names no place that can be pushed to; huggingface-hub is missing.
        SourceError: it is no URL of a dataset.
    """

    def __init__(self, url: str, revision: str | None, policy: RetryPolicy | None = None) -> None:
        if scheme_of(url) != "hf":
            raise ConfigError(
                "only the Hugging Face Hub can be pushed to",
                mend="Give hf://datasets/OWNER/NAME; for s3 use `aws s3 sync` or `rclone`",
            )
        place = parse(url)
        if place.revision is not None:
            raise ConfigError("the URL names a revision", mend="Give the branch with --revision")
        need_hub()
        self.path = place.path.rstrip("/")
        check_target(self.path)
        self._place = replace(place, revision=revision)
        self._policy = policy or RetryPolicy()
        self._uploaded: dict[str, CommitOperationAdd] = {}

    @property
    def url(self) -> str:
        """Where the set is."""
        return replace(self._place, path=self.path).url

    def prepare(self, create: bool, private: bool, dry_run: bool) -> bool:
        """See `Uploader`.

        Raises:
            SourceError: it is not there, and `create` is False; no access.
            ConfigError: it is public, and `private` is True; the revision is a commit.
        """
        if self._place.pinned:
            raise ConfigError("the revision is a commit", mend="Push to a branch")
        if not self._repository(create, private, dry_run):
            return False
        return self._branch(create, dry_run)

    def _repository(self, create: bool, private: bool, dry_run: bool) -> bool:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def find(api: HfApi) -> bool | None:
            try:
                return bool(api.dataset_info(self._place.repo).private)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        is_private = self._ask(find)
        if is_private is False and private:
            raise ConfigError(
                f"the dataset {self._place.repo} is there and public, and --private was given",
                mend="Make it private in its settings on the Hub, or push to another one",
            )
        if is_private is not None:
            return True
        if not create:
            raise SourceError(
                "there is no such dataset, or no access to it",
                where=Where(source=self.url),
                mend="Make it with --create (and --private), or set HF_TOKEN or run `hf auth login`"
                " for an account that may write it",
            )
        if not dry_run:
            self._ask(
                lambda api: api.create_repo(
                    self._place.repo, repo_type="dataset", private=private, exist_ok=True
                )
            )
        return not dry_run

    def _branch(self, create: bool, dry_run: bool) -> bool:
        from huggingface_hub.errors import RevisionNotFoundError

        branch = self._place.revision

        def find(api: HfApi) -> bool:
            try:
                api.dataset_info(self._place.repo, revision=branch)
                return True
            except RevisionNotFoundError:
                return False

        if branch is None or self._ask(find):
            return True
        if not create:
            raise SourceError(
                f"the dataset has no branch {branch!r}",
                where=Where(source=self.url),
                mend="Make it with --create, or leave --revision out",
            )
        if not dry_run:
            self._ask(
                lambda api: api.create_branch(
                    self._place.repo, branch=branch, repo_type="dataset", exist_ok=True
                )
            )
        return not dry_run

    def state(self, names: Sequence[str]) -> Mapping[str, RemoteState]:
        """See `Uploader`."""
        found: dict[str, RemoteState] = {}
        for start in range(0, len(names), _STATE_NAMES):
            some = list(names[start : start + _STATE_NAMES])
            found |= self._ask(partial(self._infos, names=some))
        return {name: found[name] for name in names if name in found}

    def _infos(self, api: HfApi, names: list[str]) -> dict[str, RemoteState]:
        from huggingface_hub.hf_api import RepoFile

        if not names:
            return {}
        items = api.get_paths_info(
            self._place.repo, names, revision=self._place.revision, repo_type="dataset"
        )
        return {
            item.path: RemoteState(
                item.size, item.blob_id, None if item.lfs is None else item.lfs.sha256
            )
            for item in items
            if isinstance(item, RepoFile)
        }

    def read(self, name: str) -> bytes:
        """See `Uploader`."""
        place = pin(replace(self._place, path=name), self._policy)
        ranges = open_hub(place.url, self._policy)
        try:
            return ranges.fetch(0, ranges.stat.size) if ranges.stat.size else b""
        finally:
            ranges.close()

    def upload(self, files: Sequence[LocalFile]) -> None:
        """See `Uploader`."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(file.name, str(file.path)) for file in files]
        self._ask(
            lambda api: api.preupload_lfs_files(
                self._place.repo,
                additions=operations,
                repo_type="dataset",
                revision=self._place.revision,
                num_threads=len(operations),
                free_memory=False,
            )
        )
        self._uploaded |= {file.name: item for file, item in zip(files, operations, strict=True)}

    def commit(self, files: Sequence[LocalFile], remove: Sequence[str], message: str) -> str:
        """See `Uploader`."""
        from huggingface_hub import CommitOperationDelete

        additions = [self._uploaded.pop(file.name) for file in files]

        def send(api: HfApi) -> str:
            # A try that failed may have gone through, and what is gone cannot be removed again.
            still = self._infos(api, list(remove))
            removals = [CommitOperationDelete(name) for name in sorted(still)]
            operations: list[Any] = [*additions, *removals]
            if not operations:
                info = api.dataset_info(self._place.repo, revision=self._place.revision)
                return str(info.sha)
            done = api.create_commit(
                self._place.repo,
                operations,
                commit_message=message,
                repo_type="dataset",
                revision=self._place.revision,
            )
            return str(done.oid)

        return self._ask(send)

    def _ask(self, action: Callable[[HfApi], T]) -> T:
        with _quiet():
            return ask(action, HubPath(self._place.repo, self._place.revision, ""), self._policy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without huggingface_hub's own bars and notes: progress is told by the caller."""
    from huggingface_hub import utils

    hub: Any = utils  # huggingface_hub does not mark these names as exported
    off, level = hub.are_progress_bars_disabled(), hub.logging.get_verbosity()
    if not off:
        hub.disable_progress_bars()
    hub.logging.set_verbosity_error()
    try:
        yield
    finally:
        hub.logging.set_verbosity(level)
        if not off:
            hub.enable_progress_bars()
