"""One POST at a time over a connection of its own, within a time that nothing can stretch.

A judge thinks for seconds, so a new connection costs little. In return nothing is ever sent twice
because a kept connection turned out to be dead, and each request that is counted is one that was
sent.
"""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any

from omr_io.errors import SourceError, Where
from omr_io.remote.connections import connect, request_target
from omr_io.remote.retries import TransientError
from omr_io.remote.urls import redact
from omr_io.text import one_line, printable

MAX_ANSWER_BYTES = 8 << 20
_PIECE = 1 << 16
_TUNNEL = "Tunnel connection failed"  # http.client's words for a proxy's refusal


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
        try:
            reply = self._exchange(body, seconds, guard)
            self._reached = True
            return reply
        except TransientError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = self._explained(error, seconds, guard.is_late)
        finally:
            guard.release()
            with self._lock:
                self._live.discard(guard)
        # Raised out here, so that no context of another library quotes headers or URLs.
        raise failure

    def _explained(
        self, error: Exception, seconds: float, is_late: bool
    ) -> SourceError | TransientError:
        where = Where(source=redact(self._url))
        if isinstance(error, TimeoutError) or is_late:
            return TransientError(f"no whole answer within {seconds:.0f} s")
        if isinstance(error, ssl.SSLCertVerificationError):
            what = f"the server's certificate is not trusted: {error.verify_message}"
            return SourceError(what, where=where)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            mend = "Write http:// if it is on this machine, or give the port that has https"
            return SourceError("the server does not speak TLS there", where=where, mend=mend)
        if isinstance(error, socket.gaierror):
            if error.errno == socket.EAI_NONAME and not self._reached:
                return SourceError("there is no such host", where=where)
            return TransientError(f"the host's name cannot be resolved: {error.strerror}")
        if _TUNNEL in str(error):
            return TransientError(f"the proxy lets nothing through: {printable(one_line(error))}")
        return TransientError(f"the connection failed ({type(error).__name__})")

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
        # http.client's own way to a socket gives it away only when all is done: the host reached,
        # a proxy's answer read, TLS agreed. Each of these may wait for ever.
        connection._create_connection = guard.reach  # type: ignore[attr-defined]
        try:
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
    """Cuts a connection when its time is over, or when it is told to, from its first packet on."""

    def __init__(self, seconds: float) -> None:
        self.is_late = False
        self._cut = False
        self._lock = threading.Lock()
        # A second handle of the connection: TLS takes the first one's descriptor away, and its own
        # `shutdown` takes the TLS state from under a reading thread.
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def reach(self, address: tuple[str, int], seconds: float, _: object) -> socket.socket:
        """As `socket.create_connection`, but that it can be cut."""
        problem = OSError("the host has no address")
        found = socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)
        for family, kind, protocol, _name, place in found:
            sock = socket.socket(family, kind, protocol)
            try:
                self._connect(sock, place, seconds)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._let_go()

    def _connect(self, sock: socket.socket, place: Any, seconds: float) -> None:
        with self._lock:  # so that a cut comes before, or finds a connection under way
            if self._cut:
                raise ConnectionAbortedError(errno.ECONNABORTED, "cut before it was made")
            self._let_go()
            self._socket = sock.dup()
            sock.setblocking(False)
            fault = sock.connect_ex(place)
        if fault == errno.EINPROGRESS:
            made = select.poll()
            made.register(sock, select.POLLOUT)
            if not made.poll(seconds * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "the host does not answer")
            fault = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if fault:
            raise OSError(fault, os.strerror(fault))
        sock.settimeout(seconds)

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _expire(self) -> None:
        self.is_late = True
        self.cut()
