"""The fuzz target of the tokenizer's core (csrc/fuzz), built here and run for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("OMR_FUZZ_SECONDS", "20"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    cmake = shutil.which("cmake") or str(pytest.importorskip("cmake").CMAKE_BIN_DIR) + "/cmake"
    folder = tmp_path_factory.mktemp("fuzz")
    environment = os.environ | {"CXX": "g++"} if shutil.which("g++") else None
    for command in (
        [cmake, "-S", str(ROOT / "csrc"), "-B", str(folder), "-DOMR_FUZZ=ON"],
        [cmake, "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return folder / "fuzz" / "fuzz_tokenizer"


def test_nothing_breaks(binary: Path, tmp_path: Path) -> None:
    seed = "1"  # `make fuzz` takes another one each time
    done = subprocess.run(
        [binary, str(SECONDS), seed], cwd=tmp_path, capture_output=True, text=True
    )
    crash = tmp_path / "crash-input.bin"
    found = crash.read_bytes().hex() if crash.exists() else "none kept"
    assert done.returncode == 0, f"seed {seed}, input {found}\n{done.stderr[-4000:]}"
    assert int(done.stdout.split()[0]) > 5 * SECONDS  # thousands a second; slow ones do as well


def test_inputs_worth_keeping(binary: Path, tmp_path: Path) -> None:
    """tests/csrc/fuzz_inputs: those that broke something, or would without a certain check."""
    inputs = sorted((ROOT / "tests/csrc/fuzz_inputs").iterdir())
    assert inputs
    done = subprocess.run([binary, "0", "1", *inputs], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_driver_keeps_what_breaks(binary: Path, tmp_path: Path) -> None:
    """An input whose first byte asks for it breaks a promise: the fuzzer must see that."""
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xffBREAK")
    done = subprocess.run(
        [binary, "0", "1", bad], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"OMR_FUZZ_SELF_TEST": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "broken:" in done.stderr
    assert (tmp_path / "crash-input.bin").read_bytes() == bad.read_bytes()
