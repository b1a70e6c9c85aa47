"""Trackers against the real packages, by reading back what they wrote; Trackio against a fake."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from omr_io.errors import ConfigError, OmrWarning
from omr_io.train.trackers import NAMES, Trackers, check_trackers

CONFIG = {
    "sft.lr": 1e-3,
    "data.train": "shards",
    "vision.mean": [0.5, 0.5, 0.5],
    "rl.samples": None,
}


def logged(name, folder, steps, *, done=0) -> Trackers:
    trackers = Trackers.of([name], folder, done)
    trackers.start("demo", CONFIG)
    for step in steps:
        trackers.log(
            step,
            {"sft/loss": 1.0 / step, "sft/tokens": step, "sft/note": "text", "sft/none": None,
             "sft/flag": True},
        )  # fmt: skip
    trackers.close()
    return trackers


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars():
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        assert found.Tags()["scalars"] == ["sft/loss", "sft/tokens"]
        return [(e.step, pytest.approx(e.value)) for e in found.Scalars("sft/loss")], found

    logged("tensorboard", tmp_path, [1, 2, 3, 4])
    rows, found = scalars()
    assert rows == [(i, 1 / i) for i in (1, 2, 3, 4)]
    text = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| sft.lr | 0.001 |" in text
    # Resumed after step 2, and after none: what a killed run wrote later is hidden.
    for done in (2, 0):
        logged("tensorboard", tmp_path, [done + 1], done=done)
        rows, _ = scalars()
        assert rows == [(i, 1 / i) for i in range(1, done + 2)]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Of an offline run: LevelDB's log after 7 bytes; blocks of 32 KiB of (crc, size, kind)."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "medical")
    logged("wandb", tmp_path, [1, 2, 3])
    logged("wandb", tmp_path, [4], done=3)
    wandb.teardown()  # `finish` returns before its other process has written all to the file
    rows, runs = [], []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                runs.append(record.run)
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {".".join(item.nested_key) or item.key: item.value_json for item in items}
                )
    assert {(run.project, run.display_name) for run in runs} == {("medical", "demo")}
    assert len({run.run_id for run in runs}) == 1  # a resumed run goes on in the same
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert config["sft.lr"] == "0.001"
    found = [(int(row["_step"]), float(row["sft/loss"])) for row in rows if "sft/loss" in row]
    assert sorted(found) == [(i, pytest.approx(1 / i)) for i in (1, 2, 3, 4)]
    assert "sft/note" not in rows[0]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'store'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (tmp_path / "run").mkdir()
    logged("mlflow", tmp_path / "run", [1, 2, 3])
    # Killed after step 3 and resumed after step 1: no step is there twice.
    logged("mlflow", tmp_path / "run", [2, 3, 4], done=1)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("omr_io")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "demo"
    assert run.info.status == "FINISHED"
    assert run.data.params["sft.lr"] == "0.001"
    rows = client.get_metric_history(run.info.run_id, "sft/loss")
    assert sorted((row.step, row.value) for row in rows) == [(i, 1 / i) for i in (1, 2, 3, 4)]
    assert set(run.data.metrics) == {"sft/loss", "sft/tokens"}
    resumed = Trackers.of(["mlflow"], tmp_path / "run", 4)
    resumed.start("demo", CONFIG)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    resumed.close(failed=True)
    assert client.get_run(run.info.run_id).info.status == "FAILED"


class FakeTrackio(ModuleType):
    """The three functions of trackio 0.43, with their signatures; `init` before all else."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = importlib.util.spec_from_loader("trackio", None)
        self.runs: dict[tuple[str, str], list[list]] = {}
        self.current: list | None = None

    def init(
        self, project, name=None, group=None, space_id=None, server_url=None, dataset_id=None,
        bucket_id=None, config=None, resume="never", settings=None, private=None, embed=True,
        auto_log_gpu=None, gpu_log_interval=10.0, auto_log_cpu=None, cpu_log_interval=10.0,
        webhook_url=None, webhook_min_level=None,
    ):  # fmt: skip
        assert resume in ("never", "allow", "must")
        assert config is None or isinstance(config, dict)
        runs = self.runs.setdefault((project, name), [])
        if resume == "never" or not runs:
            runs.append([])
        self.current = runs[-1]
        return SimpleNamespace(_next_step=max((step for step, _ in self.current), default=-1) + 1)

    def log(self, metrics, step=None):
        if self.current is None:
            raise RuntimeError("Call trackio.init() before trackio.log().")
        self.current.append((step, metrics))

    def finish(self):
        if self.current is None:
            raise RuntimeError("Call trackio.init() before trackio.finish().")
        self.current = None


def test_trackio(tmp_path, monkeypatch):
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setenv("TRACKIO_PROJECT", "medical")
    logged("trackio", tmp_path, [1, 2])
    # Killed before its first checkpoint: in the same run, where only the last step comes again.
    logged("trackio", tmp_path, [1, 2, 3])
    rows = [(i, {"sft/loss": 1 / i, "sft/tokens": i}) for i in (1, 2, 2, 3)]
    assert fake.runs == {("medical", "demo"): [rows]}
    assert fake.current is None
    (tmp_path / "other").mkdir()  # as by --overwrite
    logged("trackio", tmp_path / "other", [1])
    assert fake.runs == {("medical", "demo"): [rows, rows[:1]]}


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_names_its_extra(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed.*omr_io\[{name}\]"):
        check_trackers([name])


def test_an_unknown_tracker_names_the_known():
    with pytest.raises(ConfigError, match=r"'tensorbored' is unknown. Known: tensorboard, wandb"):
        check_trackers(["tensorbored"])


def test_a_tracker_that_cannot_start_ends_the_run_before_it_begins(tmp_path, monkeypatch):
    fake = FakeTrackio()

    def init(**arguments):
        raise ValueError("no such Space\nmore")

    fake.init = init
    monkeypatch.setitem(sys.modules, "trackio", fake)
    trackers = Trackers.of(["trackio"], tmp_path)
    with pytest.raises(ConfigError, match=r"trackio cannot start: no such Space. Set it up"):
        trackers.start("demo", CONFIG)


class Recorder:
    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.closed: list[bool] = []

    def start(self, name, config):
        if self.failing == "start":
            raise ValueError("not logged in")

    def log(self, step, metrics):
        if self.failing == "log":
            raise ValueError("no such server")

    def close(self, *, failed):
        self.closed.append(failed)
        if self.failing == "log":
            raise ValueError("again")


def test_those_before_one_that_cannot_start_are_closed():
    first, second, third = Recorder(), Recorder("start"), Recorder()
    trackers = Trackers({"first": first, "second": second, "third": third})
    with pytest.raises(ConfigError, match="second cannot start: not logged in"):
        trackers.start("demo", CONFIG)
    assert (first.closed, second.closed, third.closed) == ([True], [], [])


def test_one_that_fails_is_closed_and_left_out():
    fails, works = Recorder("log"), Recorder()
    trackers = Trackers({"fails": fails, "works": works})
    trackers.start("demo", CONFIG)
    with pytest.warns(OmrWarning, match="fails failed and gets no more metrics: no such server"):
        trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 1.0})
    trackers.close()
    assert (fails.closed, works.closed) == ([True], [False])


def test_a_tracker_that_fails_at_the_end_is_a_warning(tmp_path, monkeypatch):
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    trackers = Trackers.of(["trackio"], tmp_path)
    trackers.start("demo", CONFIG)
    fake.current = None
    with pytest.warns(OmrWarning, match="trackio failed"):
        trackers.close()
    trackers.close()
