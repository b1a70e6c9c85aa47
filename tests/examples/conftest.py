"""What the examples run on: a small corpus, a small model's folder, an environment of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from omr_io.config import VisionConfig
from omr_io.train.checkpoint import export_hf
from omr_io.train.model import DemoModelConfig, build_demo_model
from omr_io.train.run import get_token_ids

ROOT = Path(__file__).parents[2]
PACKAGES = ("accelerate==1.15.0", "lightning==2.6.6")


@pytest.fixture(scope="session")
def corpus(write_shards, make_records) -> Path:
    """A shard set of 40 samples, each with an image or two."""
    return write_shards([one for one in make_records(50) if one.images])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> Path:
    """A random Qwen3-VL of two layers as a Hugging Face folder."""
    small = DemoModelConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, mrope_section=(4, 2, 2), vision_depth=2,
        vision_hidden_size=32, vision_intermediate_size=48, vision_num_heads=2,
        deepstack_visual_indexes=(0,), num_position_embeddings=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "tiny"
    ids = get_token_ids(tokenizer)
    model = build_demo_model(tokenizer.vocab_size, ids, seed=0, config=small)
    export_hf(folder, model, tokenizer, VisionConfig(min_pixels=32 * 32, max_pixels=96 * 96))
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Path:
    """The Python of an environment with other people's trainers, over the one the tests run in."""
    root = tmp_path_factory.mktemp("trainers") / "venv"
    subprocess.run([sys.executable, "-m", "venv", root], check=True, timeout=900)
    python = root / "bin/python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    outer = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    # As site folders, so that their own .pth files count: an editable install is one.
    lines = [f"import site; site.addsitedir({folder!r})" for folder in outer]
    (Path(done.stdout.strip()) / "zz-outer.pth").write_text("\n".join(lines) + "\n")
    install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
    got = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if got.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"{', '.join(PACKAGES)} cannot be had here: {got.stderr[-300:]}")
    assert got.returncode == 0, got.stderr
    return python


@pytest.fixture
def run():
    """A function: run an example (or any file) to its end; gives its output."""

    def start(*command: Any, python: Path | str = sys.executable) -> str:
        child = subprocess.Popen(
            [str(part) for part in (python, *command)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=quiet(),
            start_new_session=True,
        )  # fmt: skip
        try:
            out, errors = child.communicate(timeout=1200)
        finally:  # with its ranks, whatever became of them
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        assert child.returncode == 0, out[-2000:] + errors[-4000:]
        return out

    return start


def quiet() -> dict[str, str]:
    """The environment of a child: one thread, nothing online, no GPU."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
