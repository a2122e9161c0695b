"""Images by URL, from hosts that the server was told to trust; without such hosts nothing is ever fetched.

A URL is a way to make a server talk to its own network. So: http and https only; the host must be on the list, and
again at each redirect; its name is resolved once, every address must be global, and the connection goes to the
address that was checked; bytes and time are bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from gitfast.serve.errors import ApiError, invalid

MAX_REDIRECTS = 3
_CHUNK_BYTES = 64 * 1024
_PORTS = {"http": 80, "https": 443}


def resolve(host: str, port: int) -> list[str]:
    """Resolve a host name to its addresses."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_global(address: str) -> bool:
    """Return whether an address is public: not private, loopback, link-local, multicast or mapped."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is not None:
            return is_global(str(embedded))
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64: the last 32 bits are an IPv4 address
            return is_global(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """A client for URLs of ``hosts``, each a name, or name:port for another port than the scheme's."""

    hosts: tuple[str, ...]
    max_bytes: int
    timeout: float
    resolve: Callable[[str, int], list[str]] = field(default=resolve, repr=False)
    is_allowed: Callable[[str], bool] = field(default=is_global, repr=False)

    def fetch(self, url: str, name: str) -> bytes:
        """Fetch the bytes behind a URL; ``name`` is the argument that holds it.

        Raises:
            ApiError: 400; the URL may not be fetched, or cannot be.
        """
        if not self.hosts:
            raise _refused(name, "URLs are not fetched by this server; send the image as a data URI")
        deadline = time.monotonic() + self.timeout
        for _ in range(MAX_REDIRECTS + 1):
            parts = self._check_url(url, name)
            try:
                body, location = self._get(parts, name, deadline)
            except (OSError, http.client.HTTPException):
                raise _failed(name, "the host did not answer as it should") from None
            if location is None:
                return body
            try:
                url = urljoin(url, location)
            except ValueError:
                raise _failed(name, "a redirect to what is no URL") from None
        raise _failed(name, f"more than {MAX_REDIRECTS} redirects")

    def _check_url(self, url: str, name: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _refused(name, "not a URL") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise _refused(name, "expected http:// or https:// with a host")
        if parts.username is not None or parts.password is not None:
            raise _refused(name, "a URL with a user name is not fetched")
        host = parts.hostname.rstrip(".").lower()
        asked = host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"
        if asked not in {allowed.lower() for allowed in self.hosts}:
            raise _refused(name, "this host is not one that the server may fetch from")
        if any(ord(c) <= 32 or ord(c) >= 127 for c in url):
            raise _refused(name, "a URL has no spaces or control characters, and only ASCII")
        return parts

    def _get(self, parts: SplitResult, name: str, deadline: float) -> tuple[bytes, str | None]:
        """Get a URL; return its body, or the URL that it redirects to."""
        host = str(parts.hostname)
        port = parts.port or _PORTS[parts.scheme]
        addresses = self.resolve(host, port)
        if not addresses or not all(map(self.is_allowed, addresses)):
            raise _refused(name, "this host has an address that is not public")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = _Connection(host, port, addresses[0], https=parts.scheme == "https", timeout=_left(deadline, name))
        # A socket's own timeout starts anew with every byte.
        watchdog = threading.Timer(_left(deadline, name), connection.abort)
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.request("GET", path, headers={"Accept": "image/*,video/*", "User-Agent": "gitfast"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                location = response.getheader("Location")
                if location is None:
                    raise _failed(name, "a redirect without a place")
                return b"", location
            if response.status != 200:
                raise _failed(name, f"the host answered with status {response.status}")
            return self._read(response, name, deadline), None
        finally:
            watchdog.cancel()
            connection.close()

    def _read(self, response: http.client.HTTPResponse, name: str, deadline: float) -> bytes:
        body = bytearray()
        while True:
            chunk = response.read1(_CHUNK_BYTES)
            _left(deadline, name)
            if not chunk:
                if response.length:
                    raise _failed(name, "the image ended early")
                return bytes(body)
            body += chunk
            if len(body) > self.max_bytes:
                raise _failed(name, f"more than {self.max_bytes} bytes")


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, under the name of its host."""

    def __init__(self, host: str, port: int, address: str, *, https: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address
        self._https = https
        if https:
            self.default_port = _PORTS["https"]

    def abort(self) -> None:
        """End whatever waits for this connection; from another thread."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._https:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _left(deadline: float, name: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _failed(name, "the host was too slow")
    return left


def _refused(name: str, reason: str) -> ApiError:
    return invalid(f"{name}: {reason}", name, code="url_not_allowed")


def _failed(name: str, reason: str) -> ApiError:
    return invalid(f"{name}: {reason}", name, code="url_not_fetched")
