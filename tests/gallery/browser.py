"""A real browser without a screen: loads a page and gives its DOM back after scripts have run."""

from __future__ import annotations

import contextlib
import html.parser
import http.server
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "img", "br", "hr", "link", "input", "base", "embed", "source", "wbr", "area"}
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars",
    "--virtual-time-budget=3000",
)  # fmt: skip


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium: apt-get install chromium")


def dump_dom(url: str, *flags: str) -> str:
    """The page's DOM as HTML, after its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium(), *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, timeout=400, check=True)
    text = done.stdout.decode("utf-8")
    assert "<html" in text
    return text


class Dom(html.parser.HTMLParser):
    """Elements with attributes, and the text of each `article`."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.articles: list[tuple[dict[str, str | None], str]] = []
        self._quiet = 0
        self._open: list[tuple[dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._quiet += tag in ("script", "style")
        if tag == "article":
            self._open.append((dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self._quiet -= tag in ("script", "style")
        if tag == "article":
            attributes, parts = self._open.pop()
            self.articles.append((attributes, "".join(parts)))

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.text.append(data)
            for _, parts in self._open:
                parts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A local server that answers every request and notes its path."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            """Not on the test's output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, hits
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def file_url(path: Path, fragment: str = "") -> str:
    return path.resolve().as_uri() + (f"#{fragment}" if fragment else "")


class Session:
    """A page in a running browser, driven through Chrome's protocol over a pair of pipes."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._rest, self._number, self._session = b"", 0, ""

    def open(self, url: str) -> None:
        """Open a page and wait until it is there and its scripts have run."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        # At first there may be an empty page, which is complete too.
        self.until("[location.href, document.readyState]", [url, "complete"])

    def js(self, expression: str) -> Any:
        """The value of an expression, evaluated in the page as its developer tools would."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression: str, expected: Any) -> None:
        """Wait for what the page does a moment later; fails after some seconds."""
        deadline = time.monotonic() + 200
        while (found := self.js(expression)) != expected:
            assert time.monotonic() < deadline, f"{expression} is {found}, not {expected}"
            time.sleep(0.02)

    def key(self, key: str) -> None:
        """Press a key as a person would; a printable one types itself."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._back], [], [], 200)
                assert ready, f"no answer to {method}"
                data = os.read(self._back, 1 << 16)
                assert data, "the browser is gone"
                self._rest += data
            raw, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(raw)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])


@contextlib.contextmanager
def session(url: str) -> Iterator[Session]:
    """A browser with a page open, to be typed into."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    flags = [flag for flag in FLAGS if not flag.startswith("--virtual")]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = [chromium(), *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{in_read} 4>&{out_write}', "bash", *browser],
            pass_fds=(in_read, out_write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(in_read)
        os.close(out_write)
        try:
            page = Session(process, in_write, out_read)
            page.open(url)
            yield page
            page._session = ""
            page.call("Browser.close")
            process.wait(200)
        finally:
            process.kill()
            process.wait()
            os.close(in_write)
            os.close(out_read)
