"""`make gpu-bench`: check the kernels on this machine's GPU, time them, write the results.

    python -m benchmarks.gpu [tests] [pack] [pixels] [decode]

The tests marked gpu come first (every kernel against its oracle by torch.equal, no sync in a step):
nothing is timed while one fails. Results go to benchmarks/results/gpu-*.json, with the GPU's name
and the commit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import gpu_decode, gpu_pack, gpu_pixels
from benchmarks.gpu_pixels import require_gpu
from benchmarks.run import RESULTS
from omr_io.errors import ConfigError

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "pack": gpu_pack.measure,
    "pixels": gpu_pixels.measure,
    "decode": gpu_decode.measure,
}


def run_tests() -> None:
    """The tests marked gpu, on the GPU.

    Raises:
        SystemExit: one fails, or none ran.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "tests"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment)
    if done.returncode:
        sys.exit(f"error: the tests marked gpu failed (exit code {done.returncode})")


def about() -> dict[str, Any]:
    """The GPU, the versions and the commit that a result belongs to; uncommitted changes are told.

    Raises:
        ConfigError: there is no GPU.
    """
    torch = require_gpu()
    import triton

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        },
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def main() -> None:
    """Run what was asked for; 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = ["tests", *PARTS]
    parser.add_argument("parts", nargs="*", choices=[*every, []], default=[])
    chosen = parser.parse_args().parts or every
    try:
        machine = about()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if "tests" in chosen:
        run_tests()
    RESULTS.mkdir(exist_ok=True)
    for name in chosen:
        if name == "tests":
            continue
        result = {"benchmark": f"gpu-{name}"} | machine | PARTS[name]()
        path = RESULTS / f"gpu-{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{machine['device']}: {name} is measured, see {path}")


if __name__ == "__main__":
    main()
