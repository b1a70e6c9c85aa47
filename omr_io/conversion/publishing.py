"""The last step: files that are complete in the hidden folder get their final names.

publish.json says what will be moved and is written when all of it is there. From then on moving can
stop anywhere and go on: each step is one rename or removal, done or not. The manifest comes last,
so nobody takes what is there before for a set.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

from omr_io.errors import ConfigError, IntegrityError
from omr_io.shards.layout import ENERGON_FOLDER, MANIFEST_NAME
from omr_io.storage import fsync_folder, write_atomically, writing

PUBLISH_NAME = "publish.json"


@dataclass(frozen=True, slots=True)
class Publication:
    """What is moved from the hidden folder to the set's own.

    Attributes:
        moves: (name in the hidden folder, name in the set) of every file but the manifest.
        remove: files of the set that is replaced.
    """

    moves: tuple[tuple[str, str], ...]
    remove: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Publication | None:
        """What a run had begun to publish from a hidden folder, if it had."""
        try:
            fields = json.loads((folder / PUBLISH_NAME).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            with writing(folder):
                raise error
        moves = tuple((old, new) for old, new in fields["moves"])
        return cls(moves, tuple(fields["remove"]))

    @staticmethod
    def is_over(folder: Path) -> bool:
        """Whether all is published, and the hidden folder is only in the way."""
        return (folder / PUBLISH_NAME).exists() and not (folder / MANIFEST_NAME).exists()

    def begin(self, folder: Path, out: Path) -> None:
        """Note that all files are there, the manifest among them, and will be moved.

        Raises:
            ConfigError: a file that no run wrote has one of the final names.
            DiskError: writing failed.
        """
        for _, name in self.moves:
            if name not in self.remove and (out / name).exists():
                raise ConfigError(
                    f"{out / name} is in the way: it was put there while the conversion ran",
                    mend="Move it away, then run again",
                )
        fields = {"moves": self.moves, "remove": self.remove}
        write_atomically(folder / PUBLISH_NAME, json.dumps(fields).encode())

    def run(self, folder: Path, out: Path) -> None:
        """Move everything that is not moved yet; the manifest last.

        Raises:
            IntegrityError: a file has gone.
            DiskError: writing failed.
        """
        if self.is_over(folder):
            return
        with writing(out):
            if self.remove:
                (out / MANIFEST_NAME).unlink(missing_ok=True)
                fsync_folder(out)
            final = {name for _, name in self.moves}
            for name in self.remove:
                if name not in final:
                    (out / name).unlink(missing_ok=True)
            if any(name.startswith(f"{ENERGON_FOLDER}/") for name in self.remove):
                _remove_empty(out / ENERGON_FOLDER)
            for name, new in self.moves:
                try:
                    (folder / name).rename(out / new)
                except FileNotFoundError:
                    if not (out / new).exists():
                        raise IntegrityError(
                            f"{folder / name} has gone",
                            mend="Run again with --overwrite to convert afresh",
                        ) from None
            fsync_folder(out)
            (folder / MANIFEST_NAME).rename(out / MANIFEST_NAME)
            fsync_folder(out)

    def withdraw(self, out: Path) -> None:
        """Give up: remove what was moved, and what was left of the set to replace."""
        with writing(out):
            if (out / MANIFEST_NAME).exists():
                return  # nothing was moved yet
            for name in (*(new for _, new in self.moves), *self.remove):
                (out / name).unlink(missing_ok=True)
            fsync_folder(out)


def _remove_empty(folder: Path) -> None:
    """Remove a folder, unless it is gone already or holds files that we do not know."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
