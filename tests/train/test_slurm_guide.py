"""The batch script of docs/slurm.md, run with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs/slurm.md"

# What the script needs of Slurm: tasks that get its variables, and a command that notes its calls.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
largest=0
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@"
  code=$?
  [ $code -gt $largest ] && largest=$code
done
exit $largest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "$*" >> "$CALLS"; fi
"""
PYTHON = """#!/bin/bash
echo "$RANK of $WORLD_SIZE, local $LOCAL_RANK, $MASTER_ADDR:$MASTER_PORT: $*" >> "$CALLS"
[ "$RANK" = 1 ] && exit {code}
exit 0
"""


def scripts() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_stopped_run_and_nothing_else_is_requeued(tmp_path: Path, code: int) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text.format(code=code) if "{code}" in text else text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(scripts()[0])
    calls = tmp_path / "calls"
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls),
        "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, check=False)
    assert done.returncode == code
    lines = calls.read_text().splitlines()
    command = "train_example.py --config recipes/openmedreason_qwen3vl_8b.yaml --resume"
    expected = [f"{rank} of 2, local {rank}, node1:23456: {command}" for rank in (0, 1)]
    assert lines == expected + ["requeue 123456"] * (code == 75)


def test_torchrun_knows_the_options() -> None:
    from torch.distributed.run import get_args_parser

    (line,) = (script for script in scripts() if script.startswith("torchrun"))
    options = re.findall(r"--\w+", line.split("train_example.py")[0])
    known = get_args_parser().format_help()
    assert len(options) == 3
    for option in options:
        assert option in known or option.replace("_", "-") in known
