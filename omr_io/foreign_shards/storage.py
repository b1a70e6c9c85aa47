"""Where the tars of a foreign set are read: a folder, or a place on the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omr_io.errors import ConfigError
from omr_io.remote.urls import is_url
from omr_io.shards.layout import Manifest
from omr_io.storage import LocalStorage, Storage

if TYPE_CHECKING:
    from omr_io.remote_storage import RemoteOptions


def tar_storage(folder: Path, manifest: Manifest, options: RemoteOptions | None = None) -> Storage:
    """The storage of a foreign set's tars.

    Args:
        folder: the set's own.
        manifest: its root is "" for `folder`, an absolute folder, or a URL.
        options: of reading behind a URL.

    Raises:
        ConfigError: the root is none of these.
    """
    assert manifest.foreign is not None
    root = manifest.foreign.root
    if is_url(root):
        from omr_io.remote_storage import RemoteStorage
        from omr_io.remote_storage.shard_sets import known_files

        return RemoteStorage(root, known_files(manifest), options)
    if root and not Path(root).is_absolute():
        raise ConfigError(f"the manifest's root {root!r} is neither an absolute folder nor a URL")
    return LocalStorage(Path(root) if root else folder)
