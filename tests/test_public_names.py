"""What `import omr_io` offers, and that it costs nothing."""

import subprocess
import sys

import pytest

import omr_io
from omr_io import errors


def test_names_are_sorted_and_there():
    def place(name):
        return not name.isupper(), not name[0].isupper(), name

    assert omr_io.__all__ == sorted(set(omr_io.__all__), key=place)
    for name in omr_io.__all__:
        assert getattr(omr_io, name) is not None
        assert name in dir(omr_io)
    with pytest.raises(AttributeError, match="nothing"):
        omr_io.nothing  # noqa: B018


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
    subprocess.run([sys.executable, "-c", code], check=True)
