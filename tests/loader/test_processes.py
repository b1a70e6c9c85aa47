"""Signals, forks and spawned processes, with real ones."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.loader.loaders import assert_equal, assert_streams_equal

ROOT = Path(__file__).parents[2]
# From the signal to the end of the process, beyond what one without a loader takes. 2 s are
# promised; under load nothing holds on that, so this only tells an end from a hang: whatever waits
# for threads takes 30.
SECONDS = 25.0

SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import omr_io
from omr_io.config import VisionConfig
from omr_io.index import ShardSet

if __name__ == "__main__":
    loader = omr_io.DataLoader(
        {shards!r}, tokenizer={tokenizer!r}, vision=VisionConfig(min_pixels=1024, max_pixels=9216),
        seq_len=160, packs_per_step=4, num_threads=3, prefetch=2, cache=False,
    )
    {before}
    count = 0
    while True:
        for batch in loader:
            count += 1
            if count == 5:
                print("ready", flush=True)
            {body}
"""
SLOW = """
    read = ShardSet.read_record
    def slow(self, *arguments, **options):
        if count > 4:
            time.sleep(0.3)
        return read(self, *arguments, **options)
    ShardSet.read_record = slow
"""


@pytest.fixture(scope="module")
def saved_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def start(shards, saved_tokenizer, tmp_path):
    """A function: code → a running process that has yielded five batches."""
    running = []

    def run(body="pass", before="pass"):
        script = tmp_path / "train.py"
        script.write_text(
            SCRIPT.format(
                shards=str(shards),
                tokenizer=str(saved_tokenizer),
                before=textwrap.indent(textwrap.dedent(before), "    ").strip(),
                body=body,
            )
        )
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
            start_new_session=True,
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    (tmp_path / "tmp").mkdir()
    yield run
    for process in running:
        process.kill()
        process.communicate()


def end(process, sent=None):
    """Seconds until the process ended, and what it said on standard error."""
    begun = time.monotonic()
    if sent is not None:
        process.send_signal(sent)
    _, said = process.communicate(timeout=300)
    return time.monotonic() - begun, said


def nothing_is_left(process, folder):
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process of its group
    assert not list((folder / "tmp").iterdir())
    assert not [one for one in Path("/dev/shm").iterdir() if f"_{process.pid}_" in one.name]


def test_ctrl_c_ends_the_process(start, tmp_path):
    process = start("time.sleep(0.2)")
    seconds, said = end(process, signal.SIGINT)
    assert process.returncode == -signal.SIGINT, said
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "Fatal" not in said
    assert seconds < SECONDS
    nothing_is_left(process, tmp_path)


def test_ctrl_c_while_threads_read_slowly(start, tmp_path):
    process = start(before=SLOW)
    seconds, said = end(process, signal.SIGINT)
    assert process.returncode == -signal.SIGINT, said
    assert "Fatal" not in said
    assert seconds < SECONDS
    nothing_is_left(process, tmp_path)


def test_sigterm_ends_the_process(start, tmp_path):
    process = start(before=SLOW)
    seconds, said = end(process, signal.SIGTERM)
    assert (process.returncode, said) == (-signal.SIGTERM, "")
    assert seconds < SECONDS
    nothing_is_left(process, tmp_path)


def test_sigterm_with_a_handler_that_exits(start, tmp_path):
    process = start(
        before="""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        """
    )
    seconds, said = end(process, signal.SIGTERM)
    assert (process.returncode, said) == (7, "")
    assert seconds < SECONDS
    nothing_is_left(process, tmp_path)


@pytest.mark.parametrize(
    ("body", "code"),
    [("sys.exit(0) if count > 5 else None", 0), ("1 / 0 if count > 5 else None", 1)],
    ids=["exit", "error"],
)
def test_a_script_that_ends_with_an_iteration_open(start, body, code):
    process = start(body)
    seconds, said = end(process)
    assert process.returncode == code, said
    assert "Fatal" not in said
    assert "terminate called" not in said
    assert seconds < SECONDS


@pytest.mark.parametrize("threads", [0, 3])
def test_a_forked_child_goes_on_where_its_parent_stood(make_loader, threads):
    """Both with a new iteration and with the parent's own iterator."""
    expected = list(make_loader())
    with make_loader(num_threads=threads) as loader:
        stream = iter(loader)
        assert_equal(next(stream), expected[0])
        for again in (False, True):
            child = os.fork()
            if not child:
                code = 1
                try:
                    rest = list(iter(loader) if again else stream)
                    assert_streams_equal(rest, expected[1:])
                    assert len(loader.quarantine) == 0
                    loader.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
        assert_streams_equal(stream, expected[1:])


def test_a_fork_while_locks_are_held(make_loader):
    """Threads that are not in the child may have held any lock of the loader when it was made."""
    with make_loader(num_threads=3) as loader:
        stream = iter(loader)
        next(stream)
        engine = loader._engine
        with engine._lock, loader._order._lock:
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = len(list(iter(loader))) != len(loader) - 1
                finally:
                    os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert loader._engine is engine
        assert len(list(stream)) == len(loader) - 1


def _count_in_child(loader, connection):
    with loader:
        connection.send([batch.step for batch in loader])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_loader_goes_to_other_processes(make_loader, method):
    context = multiprocessing.get_context(method)
    with make_loader(num_threads=2, decoder="cpu") as loader:
        next(iter(loader))
        here, there = context.Pipe()
        process = context.Process(target=_count_in_child, args=(loader, there))
        process.start()
        assert here.poll(300)
        assert here.recv() == list(range(1, len(loader)))
        process.join(200)
        assert process.exitcode == 0
        assert [batch.step for batch in loader] == list(range(1, len(loader)))


def test_a_pickled_loader_is_the_same(make_loader):
    with make_loader(num_threads=2, window=9, rank=1, world_size=2) as loader:
        next(iter(loader))
        with pickle.loads(pickle.dumps(loader)) as other:
            assert other.state_dict() == loader.state_dict()
            assert (other.rank, other.world_size) == (1, 2)
            assert_streams_equal(other, loader)
    assert not [t for t in threading.enumerate() if t.name.startswith("omr-io-loader")]


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_a_process_ends_after_the_unit_at_work_however_long_that_takes(closed):
    """C++ that comes back too late would abort it: the unit ends after the process began to."""
    script = f"""
        import contextlib, threading, time
        import numpy as np
        import torch  # takes a while to go
        from omr_io import _C
        from omr_io.loader.engine import Engine
        from omr_io.loader.options import Depth
        words = np.arange(300_000, dtype=np.uint64)
        begun, ending = threading.Event(), threading.Event()
        def interrupt():
            print("interrupted", flush=True)
            ending.set()
        class Job:
            num_bytes, num_units = 1, 1
            def begin(self): ...
            def run(self, unit):
                begun.set()
                until = time.monotonic() + 200
                while not ending.is_set() and time.monotonic() < until:
                    _C.shuffled(words)
                until = time.monotonic() + 1
                while time.monotonic() < until:
                    _C.shuffled(words)
                print("done", flush=True)
            def finish(self, parts): ...
            def describe(self, error): ...
        engine = Engine(
            iter([Job()]), Depth(2, 1, 10), contextlib.nullcontext, interrupt=interrupt
        )
        begun.wait()
        if {closed}:
            engine.close()
        print("over", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["over", "interrupted", "done"]


def test_ctrl_c_while_closing_waits_for_a_thread():
    """Python then says of the thread that it is not alive; in C++ at the end it aborts all."""
    script = """
        import contextlib, os, signal, threading, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import numpy as np
        import torch  # takes a while to go
        from omr_io import _C
        from omr_io.loader.engine import Engine
        from omr_io.loader.options import Depth
        words = np.arange(300_000, dtype=np.uint64)
        begun, closing = threading.Event(), threading.Event()
        class Job:
            num_bytes, num_units = 1, 1
            def begin(self): ...
            def run(self, unit):
                begun.set()
                closing.wait()
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGINT)
                end = time.monotonic() + 2.5
                while time.monotonic() < end:
                    _C.shuffled(words)
                print("done", flush=True)
            def finish(self, parts): ...
            def describe(self, error): ...
        engine = Engine(iter([Job()]), Depth(1, 1, 10), contextlib.nullcontext)
        begun.wait()
        try:
            closing.set()
            engine.close()
            engine.close()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["interrupted", "done"]


@pytest.mark.slow
def test_a_process_may_end_while_the_next_epoch_is_planned():
    """C++ that still plans when the interpreter is gone would abort the process."""
    found = [_ends_while_planning(share) for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)]
    assert "planning True\n" in found  # on a busy machine some may be too late


def _ends_while_planning(share):
    """What a process says that ends after so large a share of the time that planning takes."""
    script = f"""
        import time
        import numpy as np
        from omr_io.loader.order import Order
        from omr_io.packing import Lengths
        tokens = np.arange(2_000_000, dtype=np.int32) % 900 + 20
        order = Order(
            Lengths(tokens, tokens, tokens, tokens), lambda epoch: None, seed=0, seq_len=8192,
            packs_per_step=8, window=None, too_long="error", keys=(),
        )
        class SlowToGo:
            def __del__(self, sleep=time.sleep):
                sleep(1.0)
        kept = SlowToGo()
        begin = time.monotonic()
        order.epoch(0).window(0)
        took = time.monotonic() - begin
        order.plan_ahead(0, 0)
        time.sleep({share} * took)
        print("planning", order._ahead.is_alive())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
