"""Collect the studies: from the packages, from the user's own folders, duplicates made one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from omr_io.demo_corpus.readers import (
    FRAMES,
    Reading,
    View,
    crop_region,
    quiet,
    read_dicom,
    read_image,
    read_volume,
)
from omr_io.demo_corpus.sources import MODALITIES, SHIPPED, Shipped, files_left_out, folder_of
from omr_io.errors import ImageError, SourceError, Where
from omr_io.types import Float32Array

SAME_PICTURE = 0.98
"""Two studies are one where any two of their views, scaled to 32 x 32, correlate above this, also
mirrored or with the contrast inverted. Distinct shipped studies stay under 0.80."""

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_VOLUME_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Pictures of one patient at one visit: the unit that is never split between train and test.

    Attributes:
        name: unique in the corpus.
        modality: in words, a value of MODALITIES, or None where nothing says it.
        body_part: in words, or None where nothing says it.
        views: at least one.
        files: where they came from.
    """

    name: str
    modality: str | None
    body_part: str | None
    views: tuple[View, ...]
    files: tuple[str, ...]


Progress = Callable[[str, int, int], None]


def collect(
    extra: Sequence[Path] = (), progress: Progress | None = None
) -> tuple[tuple[Study, ...], tuple[tuple[str, str], ...]]:
    """Read all studies; gives them and (file, reason) for each file left out.

    Args:
        extra: files, or folders searched through, of DICOM, NIfTI or images.
        progress: called with ("studies", done, total).

    Raises:
        ConfigError: a package of the `demo` extra is missing.
        SourceError: a path of `extra` does not exist.
    """
    left = files_left_out()
    found: list[Study] = []
    for number, item in enumerate(SHIPPED):
        path = folder_of(item.folder) / item.file
        try:
            found.append(_shipped(item, path))
        except Exception as error:  # a damaged file is named, whatever its reader raises
            left.append((f"{item.folder}/{item.file}", _reason(error)))
        if progress:
            progress("studies", number + 1, len(SHIPPED))
    for root in extra:
        more, unread = _extra(Path(root))
        found.extend(more)
        left.extend(unread)
    return _merge(found), tuple(left)


def _shipped(item: Shipped, path: Path) -> Study:
    readers = {"dicom": read_dicom, "volume": read_volume, "image": read_image}
    reading = readers[item.reader](path)
    code = item.modality or reading.modality
    return Study(
        name=item.study,
        modality=MODALITIES[code] if code else None,
        body_part=(reading.body_part if item.body_part is None else item.body_part) or None,
        views=tuple(crop_region(view, item.region) for view in reading.views),
        files=(f"{item.folder}/{item.file}",),
    )


def _extra(root: Path) -> tuple[list[Study], list[tuple[str, str]]]:
    if not root.exists():
        raise SourceError(f"{root} does not exist", mend="Give a file or a folder of images")
    base = root if root.is_dir() else root.parent
    paths = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    series: dict[str, list[Path]] = {}
    readings: dict[str, list[tuple[Path, Reading]]] = {}
    left: list[tuple[str, str]] = []
    for path in paths:
        try:
            kind, name = _kind(path, path.relative_to(base).as_posix())
            if kind == "dicom":
                series.setdefault(name, []).append(path)
            else:
                reading = read_volume(path) if kind == "volume" else read_image(path)
                readings.setdefault(name, []).append((path, reading))
        except Exception as error:  # named, whatever the reader raises
            left.append((str(path), _reason(error)))
    for name, members in series.items():
        for path in _spread(members):
            try:
                reading = read_dicom(path, plugins=("pillow", "pydicom", ""))
                readings.setdefault(name, []).append((path, reading))
            except Exception as error:
                left.append((str(path), _reason(error)))
    for name, pairs in list(readings.items()):
        if not any(reading.views for _, reading in pairs):
            left.append((str(pairs[0][0]), "no slice is large enough"))
            del readings[name]
    return [_study(name, pairs) for name, pairs in readings.items()], left


def _study(name: str, pairs: Sequence[tuple[Path, Reading]]) -> Study:
    codes = [reading.modality for _, reading in pairs if reading.modality]
    parts = [reading.body_part for _, reading in pairs if reading.body_part]
    return Study(
        name=name,
        modality=MODALITIES[codes[0]] if codes else None,
        body_part=parts[0] if parts else None,
        views=tuple(view for _, reading in pairs for view in reading.views),
        files=tuple(str(path) for path, _ in pairs),
    )


def _spread(members: Sequence[Path]) -> list[Path]:
    """At most FRAMES files of a DICOM study, evenly through it."""
    picks = np.unique(np.linspace(0, len(members) - 1, min(FRAMES, len(members))).astype(int))
    return [members[int(pick)] for pick in picks]


def _kind(path: Path, relative: str) -> tuple[str, str]:
    """What reader a file needs, and the name of its study."""
    lower = path.name.lower()
    if lower.endswith(_VOLUME_SUFFIXES):
        return "volume", f"extra/{relative}"
    if lower.endswith(_IMAGE_SUFFIXES):
        return "image", f"extra/{relative}"
    import pydicom
    from pydicom.misc import is_dicom

    if not is_dicom(path):
        raise ImageError("not a DICOM, NIfTI or image file", where=Where(source=str(path)))
    with quiet():
        header = pydicom.dcmread(path, stop_before_pixels=True)
    ids = f"{header.get('PatientID', '')}/{header.get('StudyInstanceUID', '')}"
    if ids == "/":
        return "dicom", f"extra/{relative}"
    # A digest: ids of patients have no business in a corpus.
    return "dicom", f"extra/dicom-{hashlib.sha256(ids.encode()).hexdigest()[:12]}"


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return error.what
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def signature(view: View) -> Float32Array:
    """(1024,) float32: the view scaled to 32 x 32 grey, mean 0, length 1."""
    small = Image.fromarray(view.pixels).convert("L").resize((32, 32), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32)
    values = values - values.mean()
    unit: Float32Array = (values / max(float(np.linalg.norm(values)), 1e-6)).ravel()
    return unit


def similarity(first: Study, second: Study) -> float:
    """The highest absolute correlation of any two views, the second's also mirrored."""
    left = np.stack([signature(view) for view in first.views])
    grids = np.stack([signature(view) for view in second.views]).reshape(-1, 32, 32)
    mirrored = (grids, grids[:, ::-1], grids[:, :, ::-1], grids[:, ::-1, ::-1])
    return max(float(np.abs(left @ grid.reshape(len(grid), -1).T).max()) for grid in mirrored)


def _merge(found: Iterable[Study]) -> tuple[Study, ...]:
    """Make studies that show the same picture one; the first gives its name."""
    kept: list[Study] = []
    for study in found:
        alike = [other for other in kept if similarity(study, other) > SAME_PICTURE]
        if not alike:
            kept.append(study)
            continue
        group = [*alike, study]
        whole = replace(
            alike[0],
            modality=next((s.modality for s in group if s.modality), None),
            body_part=next((s.body_part for s in group if s.body_part), None),
            views=tuple(view for s in group for view in s.views),
            files=tuple(file for s in group for file in s.files),
        )
        kept = [whole if s is alike[0] else s for s in kept if s is alike[0] or s not in alike]
    return tuple(kept)
