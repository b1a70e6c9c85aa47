"""The doctor on machines that are made up, and on this one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from omr_io.doctor import Finding, diagnose, diagnosis, folder, installation, machine
from omr_io.doctor.finding import ProbeError, probe
from tests.test_cli import omr_io  # noqa: F401  # a fixture

ROOT = Path(__file__).resolve().parents[2]


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    text = "0::/user.slice/job\n"
    root = files(
        tmp_path,
        {
            "user.slice/job/cpu.max": "max 100000\n",
            "user.slice/job/memory.max": "8589934592\n",
            "user.slice/cpu.max": "150000 100000\n",
            "user.slice/memory.max": "4294967296\n",
            "cgroup.procs": "",
        },
    )
    assert machine.cpu_quota(root, text) == 1.5  # the tightest on the way up
    assert machine.memory_limit(root, text) == 4 << 30
    # A container sees its own group at the root, whatever the path says.
    inside = files(tmp_path / "c", {"cpu.max": "50000 100000", "memory.max": "max"})
    assert machine.cpu_quota(inside, "0::/docker/abc\n") == 0.5
    assert machine.memory_limit(inside, "0::/docker/abc\n") is None
    assert machine.cpu_quota(tmp_path / "none", text) is None


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    text = "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n"
    root = files(
        tmp_path,
        {
            "memory/job/memory.limit_in_bytes": str(3 << 30),
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "cpu,cpuacct/job/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert machine.cpu_quota(root, text) == 2.5
    assert machine.memory_limit(root, text) == 3 << 30


def test_tight_limits_are_warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(machine, "memory_limit", lambda: 1 << 30)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    cores, memory, opened = machine.cores(), machine.memory(), machine.open_files()
    assert [found.status for found in (cores, memory, opened)] == ["warn"] * 3
    assert "0.5" in cores.found
    assert "--threads 1" in cores.mend
    assert "allows 1.0 GiB" in memory.found
    assert opened.found == "256 of unlimited"
    assert machine.shared_memory(tmp_path / "none").status == "warn"


def test_temporary_files_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.tempfile, "tempdir", "/proc/none")
    found = machine.temporary_space()
    assert found.status == "warn"
    assert "TMPDIR" in found.mend


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("https_proxy", "http://user:hf_secret@proxy.example:3128")
    monkeypatch.setenv("ALL_PROXY", "user:hf_secret@other.example:99")
    told = [machine.hugging_face_token(), machine.proxies()]
    assert "hf_secret" not in str(told)
    assert "https_proxy=http://proxy.example:3128" in told[1].found
    assert "ALL_PROXY=other.example:99" in told[1].found
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(files(tmp_path, {"token": "hf_secret"})))
    assert machine.hugging_face_token().found == f"in {tmp_path / 'token'}"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    assert "none" in machine.hugging_face_token().found


def test_requirements_of_a_source_tree_and_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = installation.needed(ROOT)
    assert any(line.startswith("torch") for line in tree[""])
    assert "triton" in tree
    lines = ["numpy>=2.0", "torch>=2.6", 'triton>=3.4; extra == "triton"', "x; extra == 'x'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    installed = installation.needed(tmp_path)
    assert installed == {"": ["numpy>=2.0", "torch>=2.6"], "triton": ["triton>=3.4"], "x": ["x"]}


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "2.4.6", "torch": "2.5.1+cu130", "rich": "13", "pillow-simd": "12.1.post0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    wanted = ["numpy>=2.0", "torch>=2.6", "rich>=13.0.0", "typer>=0.15", "pillow>=12.0"]
    assert installation.unmet(wanted) == (["typer>=0.15"], ["torch 2.5.1+cu130 (needs 2.6)"])
    monkeypatch.setattr(installation, "needed", lambda root: {"": wanted, "a": ["no"], "b": []})
    found = installation.packages(ROOT)
    assert found.status == "fail"
    assert "typer>=0.15 is missing" in found.found
    extras = installation.extras(ROOT)
    assert (extras.status, extras.found) == ("ok", "there: b; not there: a")


@pytest.mark.parametrize(
    ("installed", "imported", "status", "words"),
    [
        ({"pillow": "13.0.0"}, "13.0.0", "ok", "13.0.0"),
        ({"pillow-simd": "12.1.1.post0"}, "12.1.1.post0", "warn", "not bit-equal"),
        ({"pillow": "13.0.0", "pillow-simd": "12.1.1.post0"}, "13.0.0", "warn", "one folder"),
        ({"pillow": "13.0.0"}, "12.1.1.post0", "warn", "not bit-equal"),
        ({"pillow": "13.0.0"}, "12.0.0", "warn", "12.0.0 is imported"),
    ],
)
def test_pillow(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], imported: str, status: str,
    words: str,
) -> None:  # fmt: skip
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(installation, "probe", lambda *_: imported)
    found = installation.pillow()
    assert found.status == status
    assert words in found.found


def test_children_that_fail_are_told() -> None:
    assert probe("import json; print('noise'); print(json.dumps([1]))") == [1]
    for code, words in (
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("raise ImportError('libx.so is missing')", "libx.so is missing"),
        ("print('no json')", "exit code 0"),
        ("", "exit code 0"),
    ):
        with pytest.raises(ProbeError, match=words):
            probe(code)
    with pytest.raises(ProbeError, match="longer than"):
        probe("import time; time.sleep(60)", timeout=0.2)


def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files(tmp_path, {"brokenpackage.py": "raise OSError('libcuda.so.1: cannot open')"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = installation.optional("Broken", "brokenpackage", "broken")
    assert found.status == "warn"
    assert "libcuda.so.1" in found.found
    for module in ("nonesuch", "nonesuch.part"):
        assert installation.optional("No", module, "no").status == "ok"


def test_the_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files(tmp_path, {"core.so": "", "csrc/tar.cpp": "", "csrc/tar.hpp": ""})
    os.utime(tmp_path / "core.so", (2000, 2000))
    os.utime(tmp_path / "csrc/tar.hpp", (1000, 1000))
    os.utime(tmp_path / "csrc/tar.cpp", (1000, 1000))
    monkeypatch.setattr(installation, "probe", lambda *_: str(tmp_path / "core.so"))
    assert installation.core(tmp_path).status == "ok"
    os.utime(tmp_path / "csrc/tar.cpp", (3000, 3000))
    found = installation.core(tmp_path)
    assert found.status == "warn"
    assert "tar.cpp" in found.found
    assert "tar.hpp" not in found.found
    files(tmp_path, {"csrc/pixels/resize.cpp": "", "csrc/fuzz/driver.cpp": ""})
    found = installation.core(tmp_path)
    assert "resize.cpp" in found.found  # the core's folders count, and its fuzzer is no part of it
    assert "driver.cpp" not in found.found

    def fail(*_: object) -> None:
        raise ProbeError("No module named 'omr_io._C'")

    monkeypatch.setattr(installation, "probe", fail)
    assert installation.core(tmp_path).status == "fail"
    assert installation.decoders().status == "fail"
    assert installation.pillow().status == "fail"
    assert installation.torch().status == "fail"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installation.torch() == Finding(
        "torch", "fail", "it is not installed", "pip install torch"
    )


def fake_nvidia_smi(folder: Path, text: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(folder)


SMI = 'case "$1" in --query*) echo "NVIDIA H100, 580.65, 81559 MiB";; *) echo "CUDA Version: 13.0";; esac'  # noqa: E501


@pytest.mark.parametrize(
    ("script", "cuda", "status", "words"),
    [
        (SMI, "13.0", "ok", "H100"),
        (SMI, "12.8", "ok", "takes CUDA 13.0"),
        (SMI, None, "warn", "for the CPU only"),
        (SMI, "14.1", "warn", "built for CUDA 14.1"),
        ("echo no driver >&2; exit 9", "13.0", "warn", "nvidia-smi failed"),
        (None, "13.0", "ok", "of no use here"),
        (None, None, "ok", "none"),
    ],
)
def test_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, cuda: str | None,
    status: str, words: str,
) -> None:  # fmt: skip
    if script is not None:
        fake_nvidia_smi(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    monkeypatch.setattr(installation, "torch_build", lambda: ("2.13.0", cuda))
    found = installation.gpu()
    assert (found.status, words in found.found) == (status, True), found


def test_mounts() -> None:
    text = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:30 / /data rw,nosuid shared:5 - nfs4 server:/x rw\n"
        "3 2 0:31 / /data/my\\040set rw - fuse.s3fs s3fs rw\n"
        "4 1 0:32 / /data rw - vfat /dev/sdb rw\n"
        "5 1 0:33 / /gro\u00df rw - xfs /dev/sdc rw\n"
    )
    assert folder.mount_of(Path("/gro\u00df/a"), text) == ("/gro\u00df", "xfs")
    assert folder.mount_of(Path("/data/my set/a"), text) == ("/data/my set", "fuse.s3fs")
    assert folder.mount_of(Path("/data/b"), text) == ("/data", "vfat")
    assert folder.mount_of(Path("/database"), text) == ("/", "ext4")


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    files(tmp_path, {"set/manifest.json": "{}"})
    before = sorted(tmp_path.rglob("*"))
    found = {one.name: one for one in folder.check_folder(tmp_path / "set")}
    assert {"folder", "space", "writing", "renaming", "locks", "memory maps"} <= found.keys()
    assert all(one.status != "fail" for one in found.values())
    assert sorted(tmp_path.rglob("*")) == before
    new = folder.check_folder(tmp_path / "not" / "yet")
    assert "not there yet" in new[0].found
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    [found] = folder.check_folder(files(tmp_path, {"file": ""}) / "file")
    assert (found.status, found.name) == ("fail", "folder")
    found = folder.check_folder(Path("/proc/none"))[-1]
    assert (found.status, found.name) == ("fail", "writing")


def test_file_systems_that_lack_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(folder.fcntl, "flock", refuse)
        patch.setattr(folder.mmap, "mmap", refuse)
        found = {one.name: one.status for one in folder.check_folder(tmp_path)}
    assert (found["locks"], found["memory maps"], found["renaming"]) == ("warn", "warn", "ok")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "fsync_folder", refuse)
        found = {one.name: one.status for one in folder.check_folder(tmp_path)}
    assert found["writing"] == found["renaming"] == "fail"
    assert not list(tmp_path.iterdir())


def test_nothing_stops_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> Finding:
        raise RuntimeError("an odd machine")

    fine = Finding("x", "ok", "fine")
    for name in ("torch", "decoders", "pillow", "gpu", "python"):
        monkeypatch.setattr(installation, name, lambda: fine)
    monkeypatch.setattr(installation, "optional", lambda *_: fine)
    monkeypatch.setattr(installation, "core", broken)
    monkeypatch.setattr(machine, "memory", broken)
    monkeypatch.setattr(diagnosis, "check_folder", broken)
    found = diagnose(tmp_path)
    odd = {one.name: one for one in found.findings if "an odd machine" in one.found}
    assert set(odd) == {"C++ core", "memory", "folder"}
    assert {one.status for one in odd.values()} == {"warn"}
    assert found.ok


def test_this_machine(tmp_path: Path) -> None:
    """In a process of its own, to see that nothing heavy is imported into it."""
    code = (
        "import sys, json; from omr_io.cli import main\n"
        "try: main()\n"
        "finally: print('HEAVY', sorted({'torch', 'PIL', 'triton', 'nvidia.dali', 'pyarrow'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "doctor", str(tmp_path), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_secret"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stderr == "HEAVY []\n"
    assert "hf_secret" not in done.stdout
    about = json.loads(done.stdout)
    found = {one["name"]: one for one in about["findings"]}
    assert about["ok"] is (done.returncode == 0) is True
    assert found["JPEG decoders"]["found"].endswith("equal pixels")
    assert found["torch"]["status"] == "ok"
    assert importlib.metadata.version("torch") in found["torch"]["found"]


def test_command(omr_io, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    findings = (
        Finding("good", "ok", "it is"),
        Finding("poor", "warn", "it is slow\x1b[31m", "Mend it"),
    )
    made = diagnosis.Diagnosis("9.9", True, findings)
    monkeypatch.setattr("omr_io.doctor.diagnose", lambda folder: made)
    code, out, err = omr_io("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["ok", "good", "it", "is"]
    assert lines[1].startswith("warn  poor")
    assert "\x1b" not in out
    assert lines[2].strip() == "Mend it"
    assert lines[3] == "omr-io 9.9: 1 warnings"
    bad = diagnosis.Diagnosis("9.9", False, (*findings, Finding("bad", "fail", "no")))
    monkeypatch.setattr("omr_io.doctor.diagnose", lambda folder: bad)
    code, out, _ = omr_io("doctor", "somewhere", "--json")
    assert code == 1
    assert json.loads(out)["findings"][2] == {
        "name": "bad", "status": "fail", "found": "no", "mend": "",
    }  # fmt: skip
