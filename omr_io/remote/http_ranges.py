"""Byte ranges over HTTP: every length and every tag is checked, what may pass is tried again."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from email.message import Message

from omr_io.errors import SourceError, Where
from omr_io.remote.connections import Connections, origin_of
from omr_io.remote.ranges import Buffer, Stat, changed
from omr_io.remote.retries import (
    RetryPolicy,
    StalledError,
    StallMeter,
    Traffic,
    TransientError,
    retry_after,
)
from omr_io.remote.urls import redact

_PIECE = 1 << 16
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)
_SIZE = r"\d{1,19}(?!\d)"  # of more digits it is none, and of thousands Python makes no number
_CONTENT_RANGE = re.compile(rf"bytes\s+(?:({_SIZE})-({_SIZE})|\*)/({_SIZE}|\*)", re.IGNORECASE)
_DATE = re.compile(r"\w{3,9},? .*\d\d:\d\d:\d\d.*")  # of HTTP, in any of its three forms
_NETWORK = "Check the network and the server, then run again; or download the file, read the copy"

Explain = Callable[[int, Message, str], SourceError]
"""(status, headers, source as printed) → the error for a refusal that is final."""


def http_error(status: int, headers: Message, source: str) -> SourceError:
    """What a final refusal of a plain server means."""
    where = Where(source=source)
    if status in (404, 410):
        return SourceError("there is no such file on the server (404)", where=where)
    if status in (401, 403, 407):
        return SourceError(
            f"the server gives no access ({status})",
            where=where,
            mend="A signed URL may have expired: get a new one. Otherwise ask for access, or give "
            "a name and password as https://NAME:PASSWORD@HOST/...",
        )
    return SourceError(f"the server answers {status}", where=where)


class HttpRanges:
    """A file on an HTTP server that knows ranges.

    Args:
        url: of http or https.
        policy: of trying again.
        private: headers for the URL's own origin alone: redirects to others do not get them.
        explain: what a final refusal means.
        pinned: the URL's content never changes (it names a commit), so that only its size is
            compared: the storage servers behind it may disagree on ETags.
        source: the URL as it is printed; by default `url` without its secrets.
        head: bytes that opening brings. whole_up_to: a file of at most so many bytes is taken whole
            from a server that ignores ranges; from 0 on that is an error.
        stat: what the file is, where that is known: then opening asks for nothing, and a file that
            is another one is found out when it is read.
        renew: gives `private` anew when access is refused; if it is another, it is tried.
        connections, traffic: to be shared with other files of the same thread; closed by others.

    Raises:
        SourceError: the file cannot be had; or the server does not know ranges.
    """

    def __init__(
        self,
        url: str,
        policy: RetryPolicy,
        *,
        private: Mapping[str, str] | None = None,
        explain: Explain = http_error,
        pinned: bool = False,
        source: str | None = None,
        head: int = 1 << 18,
        whole_up_to: int = 0,
        stat: Stat | None = None,
        renew: Callable[[], Mapping[str, str]] | None = None,
        connections: Connections | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._url = url
        self._policy = policy
        self._private = dict(private or {})
        self._explain = explain
        self._pinned = pinned
        self._whole_up_to = whole_up_to
        self._source = source or redact(url)
        self._where = Where(source=self._source)
        self._renew = renew
        self._connections = connections or Connections(policy.silence)
        self._traffic = traffic or Traffic()
        self._final: str | None = None  # where redirects led; asked again when it expires
        self._stat = stat
        tag = "" if stat is None or pinned else stat.tag
        self._etag, self._modified = ("", tag) if _DATE.fullmatch(tag) else (tag, "")
        self._head = b""
        if stat is None:
            room = Buffer(head)
            self._fill(0, head, room)
            self._head = self._head or bytes(room.view())

    @property
    def stat(self) -> Stat:
        """As it was at the first request."""
        assert self._stat is not None
        return self._stat

    def fetch(self, offset: int, size: int) -> bytes:
        """Exactly these bytes.

        Raises:
            SourceError: they cannot be had, or the file has changed since it was opened.
        """
        room = Buffer(size)
        self.fetch_into(room, offset, size)
        return bytes(room.view())

    def fetch_into(self, out: Buffer, offset: int, size: int) -> None:
        """The same, into an empty buffer."""
        if offset + size <= len(self._head):
            out.append(self._head[offset : offset + size])
        else:
            self._fill(offset, size, out)

    def close(self) -> None:
        """Close connections; the next fetch opens new ones."""
        self._connections.close()

    def _fill(self, offset: int, size: int, out: Buffer) -> None:
        """Append to `out` until it has `size` bytes, or the file ends (for the first request)."""
        failures = 0
        while len(out) < (size if self._stat is None else min(size, self._stat.size - offset)):
            had = len(out)
            problem = self._try(offset, size, out)
            if problem is None and (len(out) > had or self._ends_at(offset + had)):
                failures = 0
                continue
            if problem is None:
                problem = TransientError("the server sent nothing")
            again = len(out) > had and not isinstance(problem, StalledError)
            failures = 1 if again else failures + 1
            if failures >= self._policy.tries:
                what = f"reading failed {failures} times in a row, the last time: {problem.what}"
                raise SourceError(what, where=self._where, mend=_NETWORK)
            self._traffic.retry(self._policy.pause(failures, problem.retry_after))

    def _ends_at(self, offset: int) -> bool:
        return self._stat is not None and offset >= self._stat.size

    def _try(self, offset: int, size: int, out: Buffer) -> TransientError | None:
        """One request; what it brought is in `out` even when it fails half-way."""
        permanent = ""
        try:
            self._request(offset + len(out), size - len(out), out)
            return None
        except TransientError as error:
            return error
        except ssl.SSLCertVerificationError as error:
            permanent = f"the server's certificate is not trusted: {error.verify_message}"
        except socket.gaierror as error:
            if error.errno != socket.EAI_NONAME or self._stat is not None:
                return TransientError(f"the host's name cannot be resolved: {error.strerror}")
            permanent = "there is no such host"
        except UnicodeError:  # a ValueError of http.client's: a label that is empty or too long
            permanent = "this can be no host's name"
        except (OSError, http.client.HTTPException) as error:
            self._connections.close()
            what = "the server was silent too long" if isinstance(error, TimeoutError) else ""
            return TransientError(what or f"the connection failed ({type(error).__name__})")
        self._connections.close()
        raise SourceError(permanent, where=self._where)

    def _request(self, start: int, size: int, out: Buffer) -> None:
        cached = self._final
        headers = {"Range": f"bytes={start}-{start + size - 1}"}
        # Of what is known already. Weak ones never match, and those without quotes are none.
        if self._etag.startswith('"') and not self._pinned:
            headers["If-Match"] = self._etag
        self._traffic.request()
        response, final = self._connections.get(
            cached or self._url, headers, {} if cached else self._private, self._source
        )
        if response.status == 200 and self._takes_whole(response):
            length = response.length or 0
            whole = Buffer(length)  # what was cut short is of no use: it cannot be gone on with
            opening = self._stat is None
            self._copy(response, final, length, whole)
            self._note(length, response.headers)
            self._head = bytes(whole.view()) if opening else self._head
            out.append(whole.view()[start : start + size])
            return
        if response.status != 206:
            self._connections.drop(final)
        if cached and response.status in _EXPIRED:
            self._final = None  # signed addresses live for minutes: ask for a new one
            self._request(start, size, out)
            return
        if response.status in (401, 403) and self._renewed():
            self._request(start, size, out)
            return
        # Kept only if it needs none of the headers meant for the first URL's origin.
        self._final = final if origin_of(final) != origin_of(self._url) else None
        self._check_status(response, start)
        if response.status == 206:
            self._read(response, final, start, size, out)

    def _renewed(self) -> bool:
        """Whether there are other credentials than those that were refused."""
        if self._renew is None:
            return False
        refused, self._private = self._private, dict(self._renew())
        return self._private != refused

    def _check_status(self, response: http.client.HTTPResponse, start: int) -> None:
        status, headers = response.status, response.headers
        if status == 206:
            return
        if status == 412:
            raise changed(self._source, "its ETag is another")
        if status in _TRANSIENT or status > 505:
            after = retry_after(headers.get("Retry-After", ""))
            raise TransientError(f"the server answers {status}", after)
        if status == 416:
            match = _CONTENT_RANGE.search(headers.get("Content-Range", ""))
            total = int(match[3]) if match and match[3] != "*" else None
            if total == 0:
                self._note(0, headers)
                return
            if self._stat is None:  # taken for an empty file, a full one would be lost silently
                raise SourceError(
                    "the server refuses to send a range (416), and does not say that the file is "
                    "empty",
                    where=self._where,
                    mend="Download the file and read the copy, or use a server that knows ranges",
                )
            raise changed(self._source, f"it has no byte {start} any more")
        if status == 200 and headers.get("Content-Length") == "0":
            self._note(0, headers)
            return
        if status == 200 and self._stat is not None:  # it did know them when the file was opened
            raise TransientError("the server ignored Range and sent the whole file")
        if status == 200:
            raise SourceError(
                "the server ignores Range and sends the whole file each time",
                where=self._where,
                mend="Download the file and read the copy, or use a server that knows ranges",
            )
        raise self._explain(status, headers, self._source)

    def _read(
        self, response: http.client.HTTPResponse, url: str, start: int, size: int, out: Buffer
    ) -> None:
        match = _CONTENT_RANGE.search(response.headers.get("Content-Range", ""))
        encoding = response.headers.get("Content-Encoding", "").lower() or "identity"
        if match is None or match[1] is None or match[3] == "*" or encoding != "identity":
            self._connections.drop(url)
            what = "the server sends a range without saying which of how many bytes it is"
            if encoding != "identity":
                what = f"the server sends ranges of a copy that it encodes ({encoding})"
            raise TransientError(what)  # it may be one proxy of many
        first, last, total = int(match[1]), int(match[2]), int(match[3])
        if first != start or last < first or last >= total:
            self._connections.drop(url)
            what = f"the server sends bytes {first} to {last} of {total}, {start} on were asked for"
            raise TransientError(what)
        try:
            self._note(total, response.headers)
        except SourceError:
            self._connections.drop(url)
            raise
        self._copy(response, url, min(size, last - first + 1), out)
        if last - first + 1 > size or not response.isclosed():
            self._connections.drop(url)  # there is more in it than anyone will read

    def _takes_whole(self, response: http.client.HTTPResponse) -> bool:
        """Whether a server that sends all of a file, and not a range, may."""
        if response.headers.get("Content-Encoding"):
            return False
        return response.length is not None and 0 < response.length <= self._whole_up_to

    def _copy(self, response: http.client.HTTPResponse, url: str, left: int, out: Buffer) -> None:
        meter = StallMeter(self._policy)
        while left:
            piece = response.read1(min(left, _PIECE))  # what is there: a trickle must show
            if not piece:
                self._connections.drop(url)
                raise TransientError("the server stopped in the middle")
            out.append(piece)
            left -= len(piece)
            self._traffic.received(len(piece))
            if left:
                try:
                    meter.received(len(piece))
                except StalledError:
                    self._connections.drop(url)
                    raise
        if response.length == 0 and not response.isclosed():
            response.read()  # `read1` does not see the end: only now the connection can be used

    def _note(self, total: int, headers: Message) -> None:
        """Remember what the file is; or compare, if that is known."""
        etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        if self._stat is None:
            self._etag, self._modified = etag, modified
            self._stat = Stat(total, etag or modified)
            return
        if total != self._stat.size:
            raise changed(self._source, f"it has {total} bytes and had {self._stat.size}")
        if self._pinned:
            return
        if etag and self._etag:
            if etag != self._etag:
                raise changed(self._source, "its ETag is another")
        elif modified and self._modified and modified != self._modified:
            raise changed(self._source, "its Last-Modified is another")
