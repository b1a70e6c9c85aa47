"""A worker process: converts the pieces that it is sent, and dies when its parent does."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

_POLL_SECONDS = 1.0


def main(descriptor: int, parent: int) -> None:
    """Serve one parent process over a socket.

    It sends ("job", job, threads) once, then ("task", task) one at a time, and closes the socket
    at the end. Back come ("tally", number, tally), ("done", number, tally) or ("failed", error,
    traceback). Pickle is between these two processes only.

    Args:
        descriptor: the socket.
        parent: the parent's process id.
    """
    # The parent decides what an interrupt means, and stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(descriptor)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(connection, parent, inbox), daemon=True).start()
    try:
        _serve(connection, inbox)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # nobody is left to tell


def _listen(connection: Connection, parent: int, inbox: SimpleQueue[bytes]) -> None:
    """Receive; without a parent end at once: nothing that is half written counts.

    What is received is unpickled elsewhere: that imports modules, and this thread must not wait.
    """
    try:
        while True:
            # Another child of the parent may hold the parent's end open: so ask for its id too.
            while not connection.poll(_POLL_SECONDS):
                if os.getppid() != parent:
                    os._exit(1)
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _serve(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    def receive() -> Any:
        return pickle.loads(inbox.get())  # noqa: S301

    from omr_io.conversion.piece import convert_piece
    from omr_io.conversion.piece_record import Tally

    _, job, threads = receive()

    def tell(number: int, tally: Tally, _: bool) -> None:
        connection.send(("tally", number, tally))

    while True:
        _, task = receive()
        try:
            record = convert_piece(job, task, threads, tell)
        except Exception as error:
            connection.send(("failed", _portable(error), traceback.format_exc()))
            continue
        connection.send(("done", task.piece.number, record.tally))


def _portable(error: Exception) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return None
    return error
