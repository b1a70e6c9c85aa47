"""The pack's C++ on random samples and random tables under sanitizers: see fuzz_pack.cpp."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_nothing_breaks(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    binary = tmp_path / "fuzz_pack"
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}"]
    sources = [*sorted((ROOT / "csrc/pack").glob("*.cpp")), ROOT / "tests/csrc/fuzz_pack.cpp"]
    subprocess.run([compiler, *flags, *sources, "-o", binary], check=True)
    seed = "1"
    done = subprocess.run([binary, "100000", seed], capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}\n{done.stderr[-4000:]}"
    assert int(done.stdout.split()[0]) > 10_000
