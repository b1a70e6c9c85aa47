"""HTTP over the standard library: kept-alive connections, proxies, redirects, who gets a token.

The standard library, since this package needs to see and decide each redirect, each short body and
each header by itself, and the Hub's own client differs between its versions.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from omr_io import __version__
from omr_io.errors import ConfigError, SourceError, Where
from omr_io.remote.urls import redact

Origin = tuple[str, str, int]
"""Scheme, host and port: whoever shares these three may see a token."""

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_MAX_DRAIN = 1 << 16  # a redirect's body is read so that its connection can be used again
_MAX_OPEN = 3


def origin_of(url: str) -> Origin:
    """The origin of a URL of http(s)."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme, 0)


class Connections:
    """GET requests with redirects, over a few connections kept open. Not thread-safe.

    Args:
        timeout: seconds that a connection may be silent.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._open: dict[Origin, http.client.HTTPConnection] = {}

    def get(
        self, url: str, headers: Mapping[str, str], private: Mapping[str, str], source: str
    ) -> tuple[http.client.HTTPResponse, str]:
        """Ask for a URL and follow redirects; gives the response and the URL that gave it.

        Args:
            headers: sent everywhere. private: sent to the origin of `url` alone.
            source: the URL as it is printed.

        Raises:
            SourceError: a redirect to another scheme, from https to http, or too many of them.
            ConfigError: the environment names a proxy of a kind that is not known here.
            OSError, http.client.HTTPException: the connection failed.
        """
        home, own = origin_of(url), {**_basic(url), **private}
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._request(url, {**headers, **(own if origin_of(url) == home else {})})
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response, url
            if len(response.read(_MAX_DRAIN)) == _MAX_DRAIN:
                self._drop(origin_of(url))
            url = _next(url, location, source)
        raise SourceError("the server redirects in a circle", where=Where(source=source))

    def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        for origin in list(self._open):
            self._drop(origin)

    def __del__(self) -> None:
        """A thread that ended leaves its connections to nobody."""
        with suppress(Exception):  # at the end of the interpreter anything may be gone
            self.close()

    def interrupt(self) -> None:
        """From another thread: whoever waits for a byte finds the connection closed."""
        for connection in list(self._open.values()):
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def drop(self, url: str) -> None:
        """Close the connection to a URL's host, whose last response was not read to its end."""
        self._drop(origin_of(url))

    def _drop(self, origin: Origin) -> None:
        connection = self._open.pop(origin, None)
        if connection is not None:
            connection.close()

    def _request(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        origin = origin_of(url)
        reused = origin in self._open
        try:
            return self._send(origin, url, headers)
        except (ConnectionError, http.client.BadStatusLine, http.client.CannotSendRequest):
            self._drop(origin)
            if not reused:
                raise
        except BaseException:
            self._drop(origin)
            raise
        # The server closed a connection that was idle: no failure, a new one does.
        try:
            return self._send(origin, url, headers)
        except BaseException:
            self._drop(origin)
            raise

    def _send(
        self, origin: Origin, url: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        target, extra = request_target(url)
        connection = self._open.get(origin)
        if connection is None:
            while len(self._open) >= _MAX_OPEN:
                self._drop(next(iter(self._open)))
            connection = self._open[origin] = connect(url, self._timeout)
        connection.request("GET", target, headers={**extra, **headers})
        return connection.getresponse()


def request_target(url: str) -> tuple[str, dict[str, str]]:
    """What a request for a URL names on its connection (see `connect`), and its first headers."""
    parts, origin = urlsplit(url), origin_of(url)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    headers = {"Accept-Encoding": "identity", "User-Agent": f"omr_io/{__version__}"}
    proxy = _proxy(origin)
    if proxy is not None and origin[0] == "http":  # a proxy takes the whole URL
        host = parts.netloc.rpartition("@")[2]
        target = f"http://{host}{target}"
        headers |= {"Host": host, **_proxy_authorization(proxy)}
    return target, headers


def connect(url: str, timeout: float) -> http.client.HTTPConnection:
    """A connection, not yet opened, to a URL's host, by the proxy of the environment if any.

    Args:
        timeout: seconds that it may be silent.
    """
    scheme, host, port = origin = origin_of(url)
    proxy = _proxy(origin)
    if proxy is not None:
        at = proxy.hostname or "", proxy.port or _PORTS.get(proxy.scheme, 80)
        if scheme == "http":
            return http.client.HTTPConnection(*at, timeout=timeout)
        tls = ssl.create_default_context()
        tunnel = http.client.HTTPSConnection(*at, timeout=timeout, context=tls)
        tunnel.set_tunnel(host, port, _proxy_authorization(proxy))
        return tunnel
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout)
    tls = ssl.create_default_context()
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)


def _next(url: str, location: str, source: str) -> str:
    """Where a redirect leads, checked."""
    where = Where(source=source)
    target, scheme = "", ""
    try:
        target = urljoin(url, location)
        scheme = origin_of(target)[0]
    except ValueError:
        pass  # a malformed port or host; its message may quote secrets
    if scheme not in _PORTS or not urlsplit(target).hostname:
        raise SourceError("the server redirects to something that is not http(s)", where=where)
    if scheme == "http" and origin_of(url)[0] == "https":
        what = f"the server redirects from https to http, to {redact(target)}"
        raise SourceError(what, where=where, mend="Give that URL if you trust it and the network")
    parts = urlsplit(target)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _basic(url: str) -> dict[str, str]:
    """The header for user:password@ of a URL."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return {}
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _proxy(origin: Origin) -> SplitResult | None:
    """The proxy of the usual environment variables (HTTPS_PROXY, NO_PROXY, ...).

    Raises:
        ConfigError: it is of another kind than http://HOST:PORT.
    """
    scheme, host, port = origin
    url = urllib.request.getproxies().get(scheme)
    if not url or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    url = url if "://" in url else f"http://{url}"
    with suppress(ValueError):  # a malformed port or host; its message may quote a password
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return parts
    raise ConfigError(
        f"no proxy for {scheme}:// can be {redact(url)}, of the environment",
        mend=f"Give {scheme}_proxy as http://[NAME:PASSWORD@]HOST:PORT, or the host in no_proxy",
    )


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    basic = _basic(proxy.geturl())
    return {"Proxy-Authorization": basic["Authorization"]} if basic else {}
