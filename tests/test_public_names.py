"""What omr_io and its packages offer, and that `import omr_io` costs nothing."""

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import omr_io
from omr_io import errors

PACKAGES = (
    "omr_io",
    "omr_io.batches",
    "omr_io.chat",
    "omr_io.conversion",
    "omr_io.corpus",
    "omr_io.doctor",
    "omr_io.energon",
    "omr_io.gallery",
    "omr_io.images",
    "omr_io.images.families",
    "omr_io.judge",
    "omr_io.lint",
    "omr_io.loader",
    "omr_io.packing",
    "omr_io.publish",
    "omr_io.remote",
    "omr_io.shards",
    "omr_io.telemetry",
    "omr_io.tokenizer",
    "omr_io.train.evaluation",
    "omr_io.train.report",
)


@pytest.mark.parametrize("path", PACKAGES)
def test_names_are_sorted_and_there(path):
    def place(name):
        return not name.isupper(), not name[0].isupper(), name

    package = import_module(path)
    assert package.__all__ == sorted(set(package.__all__), key=place)
    for name in package.__all__:
        assert name in dir(package)
        assert getattr(package, name) is not None
        assert not isinstance(getattr(package, name), ModuleType)
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018


def test_the_index_reads_without_the_writer():
    """Names of `omr_io.shards` are imported when first used: the index must not load all of it."""
    code = (
        "import sys, omr_io.index; "
        "sys.exit('omr_io.conversion.run' in sys.modules or 'omr_io.images' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_error_is_public():
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {name for name in kinds if value_is_ours(name)} <= set(omr_io.__all__)


def value_is_ours(name):
    return getattr(errors, name).__module__ == "omr_io.errors"


def test_importing_is_light():
    code = (
        "import sys, omr_io; "
        "heavy = {'numpy', 'torch', 'pyarrow', 'PIL', 'transformers', 'tokenizers'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
