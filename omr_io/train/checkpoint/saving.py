"""Writing checkpoints in the background, and finding the newest valid one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from omr_io.errors import (
    ConfigError,
    DiskError,
    IntegrityError,
    OmrError,
    TrainingError,
    Where,
)
from omr_io.train.checkpoint import folder
from omr_io.train.checkpoint.random_states import RandomState, random_state
from omr_io.train.checkpoint.saved import Saved
from omr_io.train.checkpoint.tree import to_json
from omr_io.train.ranks import Ranks


class Checkpoints:
    """The checkpoints of a run. A context manager: leaving it waits for a save in flight.

    With several ranks every call is collective, and `root` is on a file system that all share.

    Args:
        root: their folder; made when the first is written.
        ranks: who else runs; those of this call get a gloo group of their own, so that saving
            neither waits for a GPU nor mixes with the training's own communication.
        keep: how many are left when one has been written.

    Raises:
        ConfigError: keep < 1.
    """

    def __init__(self, root: str | Path, ranks: Ranks | None = None, *, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, not {keep}")
        self.root = Path(root)
        self._ranks = (ranks or Ranks()).on_host()
        self._keep = keep
        self._claim = folder.Claim(self.root)
        self._invalid: frozenset[str] = frozenset()
        self._thread: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None
        self._stager: Any = None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Mapping[str, Any],
        *,
        rng: RandomState | None = None,
    ) -> None:
        """Copy everything to the host and return; a thread writes it while training goes on.

        An earlier save is waited for. Whatever becomes of this one is said by the next `save`,
        `wait` or `close`; `failed` tells whether it is worth asking.

        Args:
            model: sharded by FSDP2, with adapters, compiled: its names are those of the plain one.
            optimizer: its state by the names of the model's parameters.
            progress: the rest of the run, the same on all ranks: place, `loader.state_dict()`, ...
                JSON values, tuples, tensors, and dicts with string or integer keys.
            rng: this rank's `random_state()`; None takes the present one.

        Raises:
            ConfigError: a value that could not be stored without pickle.
            DiskError: the save before this one failed, or another run writes in the folder;
                earlier checkpoints are untouched.
        """
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
            get_optimizer_state_dict,
        )

        from omr_io.train.checkpoint.storage import Writer, check_dtypes

        self.wait()
        tensors: dict[str, Tensor] = {}
        # Without a step there is no state, and torch would make one, of a step that never was.
        state = get_optimizer_state_dict(model, optimizer) if optimizer.state else None
        tree = {
            "model": to_json(get_model_state_dict(model), tensors, "model"),
            "optimizer": to_json(state, tensors, "optimizer"),
            "progress": to_json(progress, tensors, "progress"),
            "rng": self._gathered(rng or random_state(), tensors),
        }
        check_dtypes(tensors)
        staged = self._staged(tensors)
        writer = Writer(self.root, self._claim, tree, keep=self._keep, invalid=self._invalid)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving = self._thread.submit(self._write, staged, writer)

    def _gathered(self, rng: RandomState, tensors: dict[str, Tensor]) -> list[Any]:
        """All ranks' random states as JSON, their tensors in `tensors`: a few KB a rank."""
        mine: dict[str, Tensor] = {}
        tree = to_json(rng, mine, f"rng/{self._ranks.rank}")
        # As arrays: torch 2.13 cannot unpickle a random state that another rank sent as a tensor.
        told = self._ranks.gather((tree, {name: t.cpu().numpy() for name, t in mine.items()}))
        for _, theirs in told:
            tensors |= {name: torch.from_numpy(array) for name, array in theirs.items()}
        return [tree for tree, _ in told]

    def _staged(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Copies on the host, in memory that is pinned beside a GPU, and that is used again."""
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        if self._stager is None:
            gpu = torch.cuda.is_available()
            options = StagingOptions(
                use_pinned_memory=gpu, use_non_blocking_copy=gpu,
                use_shared_memory=False, use_async_staging=False,
            )  # fmt: skip
            self._stager = DefaultStager(options)
        staged: dict[str, Any] = self._stager.stage(tensors)
        return staged

    def _write(self, staged: dict[str, Any], writer: Any) -> None:
        from torch.distributed.checkpoint.api import CheckpointException

        from omr_io.train.checkpoint.storage import save_tensors

        try:
            save_tensors(staged, writer, self._ranks.group)
        except CheckpointException as failed:
            writer.discard()
            rank, (error, _) = next(iter(failed.failures.items()))
            raise self._failure(error, f" on rank {rank}") from error
        except (OSError, OmrError) as error:
            writer.discard()
            raise self._failure(error, "") from error

    def _failure(self, error: BaseException, who: str) -> DiskError:
        what, mend = str(error), "Make room or choose another folder, which all ranks share"
        if isinstance(error, OmrError):
            what, mend = error.what, error.mend or mend
        return DiskError(
            f"writing a checkpoint failed{who}: {what}", where=Where(source=str(self.root)),
            mend=f"{mend}; earlier checkpoints are untouched",
        )  # fmt: skip

    @property
    def failed(self) -> bool:
        """Whether the last save is done and failed on this rank: `wait` raises what it was."""
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def wait(self) -> None:
        """Return when the last save is on the disk and has its name.

        Raises:
            DiskError: it failed, on this or another rank.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """`wait`, and end the thread; a second call does nothing.

        Raises:
            DiskError: as `wait`.
        """
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            if self._stager is not None:
                self._stager.close()
                self._stager = None
            self._claim.release()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except DiskError as failed:
            if error is None:
                raise
            error.add_note(f"Besides, {failed}")

    def latest(self) -> Saved | None:
        """The newest valid checkpoint; None if there is none at all.

        Ranks share the work of hashing its files, and agree on what they found. A checkpoint that
        is not valid is named in a CheckpointWarning (on the first rank) and skipped; it counts no
        longer among those to keep.

        Raises:
            TrainingError: there are checkpoints, but not one is valid: starting over without a
                word would be worse.
        """
        self.wait()
        found = [name for _, path in folder.numbered(self.root) for name in [path.name]]
        found = self._ranks.gather(found)[0]  # a network file system may show ranks different lists
        for name in reversed(found):
            try:
                return self.load(name)
            except IntegrityError as error:
                self._invalid |= {name}
                if self._ranks.is_first:
                    warnings.warn(
                        f"skipped {name}: {error}", folder.CheckpointWarning, stacklevel=2
                    )
        if found:
            raise TrainingError(
                f"none of the {len(found)} checkpoints is valid",
                where=Where(source=str(self.root)),
                mend="Move the folder away to start over",
            )
        return None

    def load(self, name: str) -> Saved:
        """One checkpoint, verified against its manifest before anything is read from it.

        Raises:
            IntegrityError: a file is missing, too many, or not what was written. On every rank.
        """
        path = self.root / name
        problem: str | None = None
        entries: dict[str, folder.Entry] = {}
        written = b""
        try:
            written, files = folder.read_manifest(path)
            mine = files[self._ranks.rank :: self._ranks.world_size]
            entries = {file: folder.entry(path / file) for file in mine}
        except IntegrityError as error:
            problem = str(error)
        told = self._ranks.gather((problem, entries))
        problem = next((problem for problem, _ in told if problem is not None), None)
        state: Any = None
        if problem is None:
            everything = {file: entry for _, part in told for file, entry in part.items()}
            try:
                folder.check(path, written, everything)
                state = json.loads((path / folder.STATE).read_bytes())
            except IntegrityError as error:
                problem = str(error)
            except (OSError, ValueError) as error:
                problem = f"{folder.STATE} is unreadable: {error!r} (source {path})"
        # Reading what it says is collective: all ranks do, or none.
        problem = next(filter(None, self._ranks.gather(problem)), None)
        if problem is not None:
            raise IntegrityError(problem)
        try:
            return Saved.of(path, self._ranks, state["state"], state["tensors"])
        except (ValueError, KeyError, TypeError) as error:
            # Verified, and yet not as we write it: made by something else.
            what = f"{folder.STATE} is unreadable: {error!r}"
            raise IntegrityError(what, where=Where(source=str(path))) from error
