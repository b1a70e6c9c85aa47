"""What the demo corpus is made of: the pictures that PyPI packages ship, and those left out.

Two tables decide, so that the corpus is the same on every machine. `SHIPPED` names every file
taken, one study a line; `LEFT_OUT` says why the other files of the same folders are not. All of
them were looked at. Only files that pydicom, NumPy and Pillow decode by themselves are taken:
lossless JPEG and JPEG-LS need plugins, some of them under the GPL.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from omr_io.errors import ConfigError

Reader = Literal["dicom", "volume", "image"]

FOLDERS: dict[str, tuple[str, str]] = {
    "pydicom": ("pydicom", "data/test_files"),
    "pydicom-data": ("data_store", "data"),
    "nibabel": ("nibabel", "tests/data"),
    "nibabel-dicom": ("nibabel", "nicom/tests/data"),
    "scikit-image": ("skimage", "data"),
}
"""Folder name -> (import name of the package, path inside it). Nothing is ever downloaded."""

MODALITIES: dict[str, str] = {
    "CT": "computed tomography",
    "MR": "magnetic resonance imaging",
    "US": "ultrasound",
    "CR": "radiography",
    "DX": "radiography",
    "NM": "nuclear medicine",
    "PT": "positron emission tomography",
    "MG": "mammography",
    "OP": "fundus photography",
    "SM": "microscopy",
    "GM": "microscopy",
}
"""DICOM modality codes (PS3.3 C.7.3.1.1.1) whose files are pictures of anatomy, in words.

Others (SEG masks, RTDOSE grids, OT and SC test captures, SR reports) are left out.
"""


NOT_SAID = ""
"""In `Shipped.body_part`: the file's own field is wrong, ask nothing about it."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """One study that a package ships.

    Attributes:
        study: its name in the corpus.
        folder: a key of FOLDERS.
        file: the file in that folder.
        reader: how to read it.
        modality: a key of MODALITIES, where the file itself does not say it.
        body_part: where the file itself does not say it in a field.
        region: left, top, right, bottom as fractions: the part that shows anatomy, without
            burned-in text, shutters or padding.
    """

    study: str
    folder: str
    file: str
    reader: Reader
    modality: str | None = None
    body_part: str | None = None
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


SHIPPED: tuple[Shipped, ...] = (
    Shipped("ct-head-bleed", "pydicom-data", "693_UNCR.dcm", "dicom", body_part="head"),
    Shipped("ct-spine", "pydicom", "CT_small.dcm", "dicom"),
    Shipped("ct-head-base", "pydicom", "J2K_pixelrep_mismatch.dcm", "dicom"),
    Shipped("ct-pancreas", "pydicom-data", "explicit_VR-UN.dcm", "dicom"),
    Shipped("mr-neck", "pydicom", "MR_small.dcm", "dicom"),
    Shipped("mr-liver", "pydicom-data", "MR-SIEMENS-DICOM-WithOverlays.dcm", "dicom"),
    Shipped("mr-head-frames", "pydicom-data", "emri_small.dcm", "dicom"),
    Shipped("mr-shoulder", "pydicom-data", "MR2_UNCR.dcm", "dicom"),
    Shipped(
        "mr-angiogram",
        "nibabel-dicom",
        "slicethickness_empty_string.dcm",
        "dicom",
        body_part=NOT_SAID,  # its field says BRAIN; the picture shows the arteries of the neck
        region=(0.02, 0.40, 0.80, 0.60),
    ),
    # Nothing says who was scanned in nibabel's four volumes; their pictures are not alike.
    Shipped("mr-brain-t1", "nibabel", "anatomical.nii", "volume", "MR", "head"),
    Shipped("mr-brain-epi", "nibabel", "example4d+orig.HEAD", "volume", "MR", "head"),
    Shipped("mr-brain-axial", "nibabel", "example4d.nii.gz", "volume", "MR", "head"),
    Shipped("mr-brain-mean", "nibabel", "scaled+tlrc.HEAD", "volume", "MR", "head"),
    Shipped("us-lymph-node", "pydicom-data", "US1_UNCR.dcm", "dicom", region=(0.0, 0.1, 1.0, 0.75)),
    Shipped("us-echo", "pydicom-data", "color3d_jpeg_baseline.dcm", "dicom"),
    Shipped("us-aloka", "pydicom-data", "gdcm-US-ALOKA-16.dcm", "dicom"),
    Shipped("us-doppler", "pydicom-data", "color-pl.dcm", "dicom"),
    Shipped("cr-chest", "pydicom-data", "RG1_UNCR.dcm", "dicom"),
    Shipped("cr-leg", "pydicom-data", "RG3_UNCR.dcm", "dicom", region=(0.26, 0.0, 0.69, 1.0)),
    Shipped("nm-bone", "pydicom-data", "JPEG2000_UNC.dcm", "dicom"),
    Shipped("fundus-retina", "scikit-image", "retina.jpg", "image", "OP", "eye"),
    Shipped("fundus-vessels", "scikit-image", "microaneurysms.png", "image", "OP", "eye"),
    Shipped("micro-ihc", "scikit-image", "ihc.png", "image", "SM"),
    Shipped("micro-cell", "scikit-image", "cell.png", "image", "SM"),
)

_SAME_PICTURE = "another encoding of a study that is taken"
LEFT_OUT: tuple[tuple[str, str, str], ...] = (
    ("pydicom*", "693_*", _SAME_PICTURE),
    ("pydicom*", "MR_small_*", _SAME_PICTURE),
    ("pydicom*", "MR2_*", _SAME_PICTURE),
    ("pydicom*", "RG[13]_*", _SAME_PICTURE),
    ("pydicom*", "US1_*", _SAME_PICTURE),
    ("pydicom*", "emri_small_*", _SAME_PICTURE),
    ("pydicom*", "J*2000*.dcm", _SAME_PICTURE),
    ("pydicom*", "color-px.dcm", _SAME_PICTURE),
    ("pydicom*", "gdcm-US-ALOKA-16_big.dcm", _SAME_PICTURE),
    ("pydicom*", "examples_*", _SAME_PICTURE),
    ("pydicom*", "JPEG-LL.dcm", _SAME_PICTURE),
    ("pydicom*", "JPEG-lossy.dcm", _SAME_PICTURE),
    ("pydicom*", "JPGExtended.dcm", _SAME_PICTURE),
    ("pydicom*", "MR_truncated.dcm", "cut short on purpose"),
    ("pydicom*", "OBXXXX1A*", "a transducer in air: no anatomy, mostly text"),
    ("pydicom*", "eCT_Supplemental.dcm", "a perfusion map, not a picture of anatomy"),
    ("pydicom*", "ExplVR_BigEnd*", "80 x 60 with broken colours"),
    ("pydicom*", "SC_*", "a colour or grey test pattern, or blank"),
    ("pydicom*", "GDCMJ2K_TextGBR.dcm", "a colour test pattern"),
    ("pydicom*", "image_dfl.dcm", "a grey test pattern"),
    ("pydicom*", "mlut_18.dcm", "a test pattern for lookup tables"),
    ("pydicom*", "vlut_04.dcm", "a test pattern for lookup tables"),
    ("pydicom*", "JPEGLSNearLossless_*", "a grey ramp, and JPEG-LS"),
    ("pydicom*", "OT-PAL-8-face.dcm", "a photograph of a face"),
    ("pydicom*", "liver*", "a segmentation mask"),
    ("pydicom*", "rt*", "radiotherapy objects, not pictures"),
    ("pydicom*", "badVR.dcm", "a radiotherapy dose grid"),
    ("pydicom*", "JPGLosslessP14SV1_1s_1f_8b.dcm", "lossless JPEG needs a plugin"),
    ("pydicom*", "bad_sequence.dcm", "lossless JPEG needs a plugin"),
    ("nibabel*", "[01].dcm", "noise in place of the pixels"),
    ("nibabel-dicom", "csa_slice_norm.dcm", "no pixels"),
    ("nibabel-dicom", "decimal_rescale.dcm", "all pixels are 0"),
    ("nibabel", "example_nifti2.nii.gz", "a smaller copy of a study that is taken"),
    ("nibabel", "example4d+orig.BRIK.gz", "the pixels of example4d+orig.HEAD"),
    ("nibabel", "scaled+tlrc.BRIK", "the pixels of scaled+tlrc.HEAD"),
    ("nibabel", "functional.nii", "17 x 21 x 3: too small"),
    ("nibabel", "re*_anat_moved.nii", "a resampled copy of a study that is taken"),
    ("nibabel", "phantom_*.REC", "a phantom"),
    ("nibabel", "standard.nii.gz", "4 x 5 x 7: made up"),
    ("nibabel", "row_major.dconn.nii", "a connectivity matrix"),
    ("nibabel", "*.mnc", "made up, or MINC 2, which needs h5py"),
    ("nibabel", "test.mgz", "3 x 4 x 5: made up"),
    ("scikit-image", "phantom.png", "a phantom"),
    ("scikit-image", "*.png", "not medical"),
    ("scikit-image", "*.jpg", "not medical"),
    ("scikit-image", "*.tif", "not medical"),
    ("scikit-image", "*.gif", "not medical"),
)
"""(folder pattern, file pattern, reason); the first that matches counts."""

_PICTURES = (".dcm", ".nii", ".nii.gz", ".brik", ".brik.gz", ".rec", ".mnc", ".mgz")
_IMAGES = (".png", ".jpg", ".tif", ".gif")


def folder_of(name: str) -> Path:
    """The folder on disk behind a key of FOLDERS.

    Raises:
        ConfigError: the package is not installed.
    """
    package, inside = FOLDERS[name]
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ConfigError(
            f"the demo corpus needs the Python package {package}",
            mend="Run: pip install omr_io[demo]",
        )
    return Path(places[0]) / inside


def files_left_out() -> list[tuple[str, str]]:
    """(folder/file, reason) for each picture of the packages' folders that is not in SHIPPED."""
    taken = {(item.folder, item.file) for item in SHIPPED}
    left: list[tuple[str, str]] = []
    for name in FOLDERS:
        for path in sorted(folder_of(name).glob("*")):
            if (name, path.name) in taken or not path.name.lower().endswith(_PICTURES + _IMAGES):
                continue
            reasons = (why for where, what, why in LEFT_OUT
                       if fnmatch(name, where) and fnmatch(path.name, what))  # fmt: skip
            left.append((f"{name}/{path.name}", next(reasons, "not a picture of anatomy")))
    return left
