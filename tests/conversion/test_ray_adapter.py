"""Conversion on a real Ray, installed into an environment of its own."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from omr_io.conversion import ConvertOptions, convert
from omr_io.errors import ConfigError
from tests.conversion.small_corpora import mixed_corpus, tree_digest

SCRIPT = """
import json, sys
from pathlib import Path
import ray
from omr_io.errors import DiskError
from omr_io.conversion import ConvertOptions
from omr_io.conversion.ray_adapter import convert_with_ray

source, out = sys.argv[1:]
options = ConvertOptions(max_shard_bytes=12_000, max_shard_samples=6)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
dry = convert_with_ray(source, out + "-dry", options, dry_run=True)
seen = []
done = convert_with_ray(source, out, options, seen.append)
again = convert_with_ray(source, out, options)
assert not Path(out + "-dry").exists()

Path(out + "-bad").mkdir()
data = bytearray(Path(source, "train-1.parquet").read_bytes())
data[3000:3200] = bytes(200)
Path(source, "train-1.parquet").write_bytes(data)
try:
    convert_with_ray(source, out + "-bad", options)
    error = None
except Exception as failed:
    error = [type(failed).__name__, str(failed)]
print(json.dumps({
    "version": ray.__version__, "dry": [dry.rows, dry.samples, dry.shards, dry.bytes],
    "done": [done.rows, done.samples, done.shards, done.bytes], "outcome": done.outcome,
    "again": again.outcome, "seen": seen[-1].rows, "pieces": done.pieces, "error": error,
}))
"""


@pytest.fixture(scope="module")
def python_with_ray(tmp_path_factory) -> Path:
    """A virtual environment with Ray that sees this one's packages."""
    folder = tmp_path_factory.mktemp("ray") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    # Not as plain paths: an editable install of omr_io is found by the .pth files within.
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(ours))
    Path(packages.stdout.strip(), "ours.pth").write_text(lines)
    install = [python, "-m", "pip", "install", "--quiet", "ray>=2.40"]
    try:
        done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("pip could not install Ray in five minutes")
    if done.returncode != 0:
        pytest.skip(f"pip cannot install Ray here: {done.stderr.strip()[-300:]}")
    return python


@pytest.mark.slow
def test_ray_writes_the_same_bytes(python_with_ray, tmp_path):
    source = mixed_corpus(tmp_path / "corpus")
    options = ConvertOptions(max_shard_bytes=12_000, max_shard_samples=6, workers=1)
    expected = convert(source, tmp_path / "clean", options)
    done = subprocess.run(
        [python_with_ray, "-c", SCRIPT, source, tmp_path / "set"],
        capture_output=True, text=True, cwd=tmp_path, timeout=1200,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    counts = [expected.rows, expected.samples, expected.shards, expected.bytes]
    assert report["done"] == report["dry"] == counts
    assert (report["outcome"], report["again"]) == ("converted", "already complete")
    assert tree_digest(tmp_path / "set") == tree_digest(tmp_path / "clean")
    assert report["error"][0] == "SourceError"
    assert "train-1.parquet" in report["error"][1]


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch):
    from omr_io.conversion.ray_adapter import convert_with_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'omr_io\[ray\]'"):
        convert_with_ray(tmp_path, tmp_path / "set")
