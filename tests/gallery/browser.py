"""A real browser without a screen: loads a page and gives its DOM back after scripts have run."""

from __future__ import annotations

import contextlib
import html.parser
import http.server
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

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
        done = subprocess.run(command, capture_output=True, timeout=100, check=True)
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
