"""Where the images lie that rows name by their path: folders, zips, tars, packed tars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omr_io.corpus.image_names import (
    AmbiguousNameError,
    check_size,
    checked_name,
    missing,
    outside,
    unreadable,
)
from omr_io.corpus.raw import ImageRoot
from omr_io.errors import ConfigError, ImageError

_PACKED = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tzst": "zstd"}


def open_image_root(
    paths: str | Path | Sequence[str | Path], unpack_to: str | Path | None = None
) -> ImageRoot:
    """Open one or several places of images; the first that has a name gives it.

    Args:
        paths: folders, .zip, .tar, .tar.gz, .tgz or .tar.zst files.
        unpack_to: a folder for the tars that packed ones are unpacked into, once: they are found
            there again, and several processes may unpack at once. None takes a temporary folder
            (of TMPDIR), which goes when the result is garbage, and with the process; copies in
            other processes then unpack for themselves.

    Returns:
        A picklable root that is safe to use from several threads and after a fork. Archives are
        indexed when first read, once a process. Names are looked up thus:

        - in a folder, as they are. Nothing outside it is ever read: absolute paths, ".." and links
          that lead out are refused.
        - in an archive, as they are; else, if exactly one member's path ends in it, that:
          "PMC1_Fig1.jpg" finds "images/PMC1_Fig1.jpg". Never the other way, which could take
          "test/1.jpg" for "train/1.jpg".

    Raises:
        ConfigError: a place does not exist or is none of these.
        SourceError: an archive is broken. (Also when one is first read.)
        DiskError: unpacking ran out of space.
    """
    roots = [_open(path, unpack_to) for path in image_paths(paths)]
    if not roots:
        raise ConfigError("no image root was given")
    return roots[0] if len(roots) == 1 else SeveralRoots(tuple(roots))


def image_paths(given: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """One, several or no places of images."""
    if given is None:
        return ()
    return (Path(given),) if isinstance(given, str | Path) else tuple(map(Path, given))


def check_image_root(path: Path) -> None:
    """Raise ConfigError for what is no image root, without opening it."""
    known = path.name.lower().endswith((".zip", ".tar", *_PACKED))
    if not path.is_dir() and not (path.is_file() and known):
        raise ConfigError(
            f"image_root {path} is not a folder, nor a file that ends in .zip, .tar, "
            f"{', '.join(_PACKED)}",
        )


@dataclass(frozen=True, slots=True)
class FolderRoot:
    """A folder of images."""

    path: Path

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one image; see `ImageRoot`."""
        relative = checked_name(name)
        try:
            root = self.path.resolve()
            file = (root / relative).resolve()
            if not file.is_relative_to(root):
                raise outside(name)
            if not file.is_file():  # neither a folder nor a pipe, on which reading would hang
                raise missing(name)
            check_size(name, file.stat().st_size, max_bytes)
            return file.read_bytes()
        except ImageError:
            raise
        except ValueError:  # a NUL, or half a surrogate pair
            raise unreadable(name, "no file can have this name") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to 3.12
            why = getattr(error, "strerror", None) or "a loop of links"
            raise unreadable(name, why) from None


@dataclass(frozen=True, slots=True)
class SeveralRoots:
    """Several places, looked through in order."""

    roots: tuple[ImageRoot, ...]

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of one image, from the first root that has it; see `ImageRoot`."""
        for root in self.roots:
            try:
                return root.read(name, max_bytes)
            except ImageError as error:
                if error.reason != "missing-image" or isinstance(error, AmbiguousNameError):
                    raise
        raise missing(name, f"none of the {len(self.roots)} image roots has")


def _open(path: Path, unpack_to: str | Path | None) -> ImageRoot:
    from omr_io.corpus.image_archives import PackedTarRoot, TarRoot, ZipRoot

    check_image_root(path)
    if path.is_dir():
        return FolderRoot(path)
    name = path.name.lower()
    packed = next((kind for suffix, kind in _PACKED.items() if name.endswith(suffix)), None)
    if name.endswith(".zip"):
        return ZipRoot(path)
    if packed is None:
        return TarRoot(path)
    return PackedTarRoot(path, packed, None if unpack_to is None else Path(unpack_to))
