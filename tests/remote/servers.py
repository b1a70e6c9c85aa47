"""Small servers for tests: files over HTTP, S3, and the Hugging Face Hub, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    host: str
    client: tuple[str, int]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Reply:
    """`cut`: send only so many bytes of the body, then close; `pause`: seconds before it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause: float = 0.0
    close: bool = False  # say nothing at all


MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"

Fault = Callable[[Request, Reply], Reply]


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    return lambda request, reply: Reply(code, b"<Error><Code>Planned</Code></Error>", headers or {})


def cut(after: int) -> Fault:
    def change(request, reply):
        reply.cut = after
        return reply

    return change


def silent(request: Request, reply: Reply) -> Reply:
    return Reply(close=True)


def header(name: str, value: str | None) -> Fault:
    def change(request, reply):
        reply.headers = {k: v for k, v in reply.headers.items() if k.lower() != name.lower()}
        if value is not None:
            reply.headers[name] = value
        return reply

    return change


def no_ranges(request: Request, reply: Reply) -> Reply:
    """As a server that does not know Range."""
    if reply.status == 206:
        whole = reply.headers["X-Whole"]
        return Reply(200, base64.b64decode(whole), {"ETag": reply.headers["ETag"]})
    return reply


def slow(seconds: float) -> Fault:
    def change(request, reply):
        reply.pause = seconds
        return reply

    return change


class Server:
    """A threaded server. `faults` are taken one a request, `always` for each (after those).

    `requests` holds all that were asked for, in order.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self):
                outer._answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *args):
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 128  # with 5, connections of a busy machine are dropped

        self._http = Listener(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # a client that went away
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.other = f"http://localhost:{self._http.server_port}"  # the same under another name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def reply(self, request: Request) -> Reply:
        raise AssertionError("a server says what it replies")

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        size = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(size)
        if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = _chunks(handler.rfile)
        request = Request(
            handler.command,
            unquote(parts.path),
            parse_qs(parts.query, keep_blank_values=True),
            {name.lower(): value for name, value in handler.headers.items()},
            body,
            handler.headers.get("Host", ""),
            handler.client_address,
        )
        with self.lock:
            self.requests.append(request)
            fault = self.faults.pop(0) if self.faults else self.always
        reply = self.reply(request)
        if fault is not None:
            reply = fault(request, reply)
        self._send(handler, request, reply)

    def _send(self, handler: BaseHTTPRequestHandler, request: Request, reply: Reply) -> None:
        if reply.pause:
            time.sleep(reply.pause)
        try:
            if reply.close:
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            handler.send_response(reply.status)
            headers = {k: v for k, v in reply.headers.items() if k != "X-Whole"}
            length = headers.pop("Content-Length", str(len(reply.body)))
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", length)
            handler.end_headers()
            if request.method != "HEAD":
                handler.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                handler.wfile.flush()
                handler.close_connection = True
        except OSError:  # the client went away
            handler.close_connection = True

    def gets(self, path: str | None = None) -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and path in (None, r.path)]


def _chunks(stream) -> bytes:
    out = b""
    while True:
        size = int(stream.readline().split(b";")[0], 16)
        out += stream.read(size)
        stream.readline()
        if not size:
            return out


def ranged(request: Request, data: bytes, tag: str | None = None) -> Reply:
    """The reply to GET or HEAD of a file, with or without a Range."""
    tag = tag or etag(data)
    headers = {"ETag": tag, "Last-Modified": MODIFIED, "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "")
    if request.headers.get("if-match", tag) != tag:
        return Reply(412)
    if wanted is None:
        return Reply(200, data, headers)
    first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
    if first >= len(data):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    last = min(last, len(data) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    headers["X-Whole"] = base64.b64encode(data).decode() if len(data) < 1 << 16 else ""
    return Reply(206, data[first : last + 1], headers)


def etag(data: bytes) -> str:
    return '"' + hashlib.md5(data).hexdigest() + '"'


class FileServer(Server):
    """Files over plain HTTP; `redirects` maps a path to where it moved.

    `knows_conditions`: If-Match is kept; many servers do not know it.
    """

    knows_conditions = True

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.redirects: dict[str, str] = {}
        super().__init__()

    def reply(self, request: Request) -> Reply:
        if request.path in self.redirects:
            return Reply(302, b"moved", {"Location": self.redirects[request.path]})
        if request.path not in self.files:
            return Reply(404, b"no")
        if not self.knows_conditions:
            request.headers.pop("if-match", None)
        return ranged(request, self.files[request.path])


def certificate(folder: Path) -> Path:
    """A certificate of localhost that nobody trusts, its key beside it as key.pem."""
    pem = folder / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout",
         folder / "key.pem", "-out", pem, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl")
    return pem


class S3Server(Server):
    """Enough of S3, path style: GET and HEAD of objects, ListObjectsV2 in pages of `page`."""

    def __init__(self, objects: dict[str, bytes], bucket: str = "bucket", page: int = 3) -> None:
        self.objects, self.bucket, self.page = objects, bucket, page
        self.private = False
        super().__init__()

    def reply(self, request: Request) -> Reply:
        bucket, _, key = request.path.lstrip("/").partition("/")
        if self.private and "authorization" not in request.headers:
            return Reply(403, b"<Error><Code>AccessDenied</Code></Error>")
        if bucket != self.bucket:
            return Reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if not key:
            return self._list(request)
        if key not in self.objects:
            return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return ranged(request, self.objects[key])

    def _list(self, request: Request) -> Reply:
        def one(name: str) -> str:
            return request.query.get(name, [""])[0]

        prefix, delimiter = one("prefix"), one("delimiter")
        rows: list[tuple[str, bool]] = []  # name, whether it is a common prefix
        for key in sorted(self.objects):
            if not key.startswith(prefix):
                continue
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            row = (prefix + head + mark, True) if mark else (key, False)
            if row not in rows:
                rows.append(row)
        start = int(one("continuation-token") or 0)
        page, more = rows[start : start + self.page], start + self.page < len(rows)
        body = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            if common
            else f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[name])}</Size>"
            f"<LastModified>2015-10-21T07:28:00.000Z</LastModified>"
            f"<ETag>{escape(etag(self.objects[name]))}</ETag></Contents>"
            for name, common in page
        )
        token = f"<NextContinuationToken>{start + self.page}</NextContinuationToken>"
        text = (
            '<?xml version="1.0"?><ListBucketResult>'
            f"<Name>{self.bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{self.page}</MaxKeys>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
            f"{token if more else ''}{body}</ListBucketResult>"
        )
        return Reply(200, text.encode(), {"Content-Type": "application/xml"})
