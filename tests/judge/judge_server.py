"""A judge on loopback that says what a script has it say, and fails as the script wants."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CLAIM = re.compile(r"^Claim: (.*)$", re.MULTILINE)


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict
    attempt: int  # of equal bodies, from 0

    @property
    def user(self) -> str:
        """The first text of the user's."""
        content = self.body["messages"][1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def images(self) -> list[str]:
        content = self.body["messages"][1]["content"]
        if isinstance(content, str):
            return []
        return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]

    @property
    def claim(self) -> str:
        found = CLAIM.search(self.user)
        return found[1] if found else ""

    @property
    def is_again(self) -> bool:
        return len(self.body["messages"]) > 2


@dataclass
class Say:
    """What to answer.

    `cut`: send only so many bytes of the body; `stall`: seconds of silence before anything;
    `trickle`: seconds between single bytes of the body; `raw`: the body instead of a completion.
    """

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    usage: dict | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10}
    )
    raw: bytes | None = None
    cut: int | None = None
    stall: float = 0.0
    trickle: float = 0.0

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "type": "planned"}}).encode()
        message = {"role": "assistant", "content": self.text}
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return json.dumps(whole | ({"usage": self.usage} if self.usage else {})).encode()


def scores(presence: object, correctness: object, **more: object) -> Say:
    fields = {"reason": "So.", "presence": presence, "correctness": correctness}
    return Say(json.dumps(fields | more))


Script = Callable[[Asked], Say]


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with 5, connections of a busy machine are refused
    daemon_threads = True


class JudgeServer:
    """`url`: the base to give as an endpoint. `asked`: all requests, in order."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> JudgeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _note(self, handler: BaseHTTPRequestHandler) -> Asked:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            attempt = self._seen.get(raw.decode(), 0)
            self._seen[raw.decode()] = attempt + 1
            asked = Asked(handler.path, headers, json.loads(raw), attempt)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return asked

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                try:
                    asked = server._note(self)
                except ValueError:
                    self.close_connection = True  # whoever asked went before it was said
                    return
                try:
                    say = server.script(asked)
                    over = say.stall and server.over.wait(say.stall)
                finally:
                    with server._lock:  # before an answer, after which another may ask
                        server._at_once -= 1
                try:
                    if not over:
                        self._answer(say)
                except OSError:
                    self.close_connection = True  # whoever asked has gone

            def _answer(self, say: Say) -> None:
                body = say.body()
                self.send_response(say.status)
                for name, value in say.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if say.trickle:
                    for place in range(len(body)):
                        self.wfile.write(body[place : place + 1])
                        self.wfile.flush()
                        if server.over.wait(say.trickle):
                            return
                self.wfile.write(body if say.cut is None else body[: say.cut])
                if say.cut is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler
