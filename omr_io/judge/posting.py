"""One POST at a time over a connection of its own, within a time that nothing can stretch.

A judge thinks for seconds, so a new connection costs little. In return nothing is ever sent twice
because a kept connection turned out to be dead, and each request that is counted is one that was
sent.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message

from omr_io.errors import SourceError, Where
from omr_io.remote.connections import connect, request_target
from omr_io.remote.retries import TransientError
from omr_io.remote.urls import redact

MAX_ANSWER_BYTES = 8 << 20
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, to its last byte."""

    status: int
    headers: Message
    body: bytes


class Poster:
    """Sends JSON to one URL. Thread-safe.

    Args:
        url: of http or https.
        headers: sent with each request, the key among them.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._headers |= headers
        self._lock = threading.Lock()
        self._live: set[_Guard] = set()
        self._ended = False
        self._reached = False  # once: then a name that is not found is a passing failure

    def post(self, body: bytes, seconds: float) -> Reply:
        """Send a body and read the whole answer.

        Args:
            seconds: after which the request counts as dead, even if bytes still trickle in.

        Raises:
            TransientError: no whole answer came; another try may bring one.
            SourceError: no try will: no such host, a certificate that is not trusted.
        """
        guard = _Guard(seconds)
        with self._lock:
            self._live.add(guard)
            if self._ended:
                guard.cut()
        permanent = problem = ""
        try:
            reply = self._exchange(body, seconds, guard)
            self._reached = True
            return reply
        except TransientError:
            raise
        except ssl.SSLCertVerificationError as error:
            permanent = f"the server's certificate is not trusted: {error.verify_message}"
        except socket.gaierror as error:
            problem = f"the host's name cannot be resolved: {error.strerror}"
            unknown = error.errno == socket.EAI_NONAME and not self._reached
            permanent = "there is no such host" if unknown else ""
        except (OSError, http.client.HTTPException, ValueError) as error:
            silent = isinstance(error, TimeoutError) or guard.is_late
            problem = f"the connection failed ({type(error).__name__})"
            problem = f"no whole answer within {seconds:.0f} s" if silent else problem
        finally:
            guard.release()
            with self._lock:
                self._live.discard(guard)
        # Raised out here, so that no context of another library quotes headers or URLs.
        if permanent:
            raise SourceError(permanent, where=Where(source=redact(self._url)))
        raise TransientError(problem)

    def end(self) -> None:
        """From another thread: whoever waits for an answer finds the connection closed."""
        with self._lock:
            self._ended = True
            live = list(self._live)
        for guard in live:
            guard.cut()

    def _exchange(self, body: bytes, seconds: float, guard: _Guard) -> Reply:
        target, headers = request_target(self._url)
        connection = connect(self._url, seconds)
        try:
            connection.connect()
            guard.watch(connection.sock)
            connection.request("POST", target, body=body, headers={**headers, **self._headers})
            response = connection.getresponse()
            answer = bytearray()
            while piece := response.read1(_PIECE):
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    raise TransientError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            # `read1` ends without a word where the connection does.
            if response.length:
                raise TransientError("the connection was closed in the middle of the answer")
            if guard.is_late:
                raise TransientError(f"no whole answer within {seconds:.0f} s")
            return Reply(response.status, response.headers, bytes(answer))
        finally:
            connection.close()


class _Guard:
    """Cuts a connection when its time is over, or when it is told to."""

    def __init__(self, seconds: float) -> None:
        self.is_late = False
        self._cut = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
            if self._cut:
                self._shut()

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            self._shut()

    def release(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._socket = None

    def _expire(self) -> None:
        self.is_late = True
        self.cut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Not SSLSocket's own, which takes the TLS state from under a reading thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
