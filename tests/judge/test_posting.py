"""One request: servers and proxies that say nothing, too much, or something else than HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from omr_io.errors import OmrError, SourceError
from omr_io.judge import AskOptions, Endpoint, Judge
from omr_io.remote.retries import RetryPolicy
from tests.judge.judge_server import Say, scores
from tests.judge.test_judge import question

LONG = 600.0  # seconds: a test that waits so long has failed


class Raw:
    """A server on loopback that does with each connection what its script says."""

    def __init__(self, script: Callable[[socket.socket, threading.Event], None]) -> None:
        self._script = script
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.reached, self.over = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listening.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            self.reached.set()
            self._script(connection, self.over)

    def close(self) -> None:
        self.over.set()
        self._listening.close()


@pytest.fixture
def raw() -> Iterator[Callable[..., Raw]]:
    with ExitStack() as stack:

        def start(script: Callable[[socket.socket, threading.Event], None]) -> Raw:
            server = Raw(script)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def trickle(connection: socket.socket, over: threading.Event) -> None:
    """The first line of a proxy's answer, which never ends."""
    connection.sendall(b"HTTP/1.1 200 ")
    while not over.wait(0.05):
        connection.sendall(b"x")


def judge(url: str, *, timeout: float = LONG, tries: int = 1) -> Judge:
    policy = RetryPolicy(tries=tries, first_wait=0.01, max_wait=0.05, timeout=timeout)
    options = AskOptions(policy=policy, deadline=LONG, concurrency=2)
    return Judge(Endpoint(url, "m", key="sk-hush"), options, cache_bytes=0)


@contextmanager
def a_full_queue() -> Iterator[int]:
    """A port to which no connection is made, as behind a firewall that drops packets."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):
            probe = stack.enter_context(socket.socket())
            probe.setblocking(False)
            made = probe.connect_ex(server.getsockname()) == 0
        if made:
            pytest.skip("here a full queue takes further connections")
        yield server.getsockname()[1]


def closed_while_asked(asker: Judge, reached: Callable[[], object]) -> OmrError:
    """What `ask_all` raises when the judge is closed after `reached`; it must end at all."""
    raised: list[OmrError] = []

    def ask() -> None:
        try:
            asker.ask_all([question("1"), question("2"), question("3")])
        except OmrError as error:
            raised.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    reached()
    asker.close()
    thread.join(LONG / 10)
    assert not thread.is_alive()
    return raised[0]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_closing_ends_what_is_under_way(raw, scheme: str) -> None:
    """Of https: while TLS waits for the server."""
    server = raw(silent)
    asker = judge(f"{scheme}://127.0.0.1:{server.port}/v1")
    assert "closed" in str(closed_while_asked(asker, server.reached.wait))


def test_closing_ends_the_wait_for_a_proxy(raw, monkeypatch) -> None:
    server = raw(silent)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.port}")
    asker = judge("https://judge.invalid/v1")
    assert "closed" in str(closed_while_asked(asker, server.reached.wait))


def test_closing_ends_the_wait_for_a_host() -> None:
    with a_full_queue() as port:
        asker = judge(f"http://127.0.0.1:{port}/v1")

        def sent() -> None:
            while asker.usage.requests < 2:
                threading.Event().wait(0.01)

        assert "closed" in str(closed_while_asked(asker, sent))


def test_a_host_that_does_not_answer_has_a_time() -> None:
    with a_full_queue() as port, judge(f"http://127.0.0.1:{port}/v1", timeout=0.3) as asker:
        assert "no whole answer" in asker.ask(question()).error


def test_a_proxy_that_trickles_has_a_time(raw, monkeypatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{raw(trickle).port}")
    with judge("https://judge.invalid/v1", timeout=0.5) as asker:
        assert "no whole answer" in asker.ask(question()).error


def test_a_proxy_that_refuses_is_said(raw, monkeypatch) -> None:
    def refuse(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 407 Who\x1b are you\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setenv("https_proxy", f"http://me:hush@127.0.0.1:{raw(refuse).port}")
    with judge("https://judge.invalid/v1") as asker:
        error = asker.ask(question()).error
    assert "the proxy lets nothing through" in error
    assert "407 Who\\x1b are you" in error
    assert "hush" not in error


def test_https_where_there_is_only_http(serve) -> None:
    server = serve(lambda asked: scores(2, 1))
    url = server.url.replace("http:", "https:")
    with judge(url, tries=50) as asker, pytest.raises(SourceError, match=r"TLS.*Write http://"):
        asker.ask(question())
    assert asker.usage.requests == 1


def test_an_answer_without_end(raw) -> None:
    def endless(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            connection.sendall(b" " * 65536)

    with judge(f"http://127.0.0.1:{raw(endless).port}/v1") as asker:
        assert "longer than 8388608 bytes" in asker.ask(question()).error


def test_the_key_goes_to_no_other_place(serve) -> None:
    other = serve(lambda asked: scores(2, 1))
    server = serve(lambda asked: Say("there", 307, {"Location": other.url + "/chat/completions"}))
    with judge(server.url) as asker, pytest.raises(SourceError, match="redirects"):
        asker.ask(question())
    assert other.asked == []
