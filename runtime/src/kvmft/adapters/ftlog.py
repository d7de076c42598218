"""The FT log's transport: one TCP connection, TLS 1.3, both sides proven by certificate.

`connect` and `accept` return only after the handshake and after the peer's name was compared with
the inventory's; nothing of the guest is sent before the peer's WELCOME arrived, because a TLS 1.3
client's handshake returns before the server has rejected its certificate.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvmft.adapters.reactor import HANGUP, READ, WRITE, Reactor
from kvmft.core.wire import Decoder, Frame, Header, WireError
from kvmft.errors import KvmftError

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for connect and handshake together."""

SEND_SLICE = 256 << 10
"""Bytes given to TLS at once: 16 records, about 0.1 ms of encryption."""

READS_PER_TURN = 64
SOCKET_BUFFER = 4 << 20


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the CA certificate and of this host's certificate and key (PEM)."""

    ca: str
    cert: str
    key: str


def context(files: TlsFiles, server: bool) -> ssl.SSLContext:
    """A context that speaks TLS 1.3 only and asks the peer for a certificate of our CA."""
    protocol = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    result = ssl.SSLContext(protocol)
    result.minimum_version = ssl.TLSVersion.TLSv1_3
    result.check_hostname = False  # the name is pinned below, to the inventory and not to DNS
    result.verify_mode = ssl.CERT_REQUIRED
    try:
        result.load_verify_locations(files.ca)
        result.load_cert_chain(files.cert, files.key)
    except (OSError, ssl.SSLError) as error:
        raise KvmftError(
            "tls_files_unusable",
            f"The certificates {files.ca}, {files.cert} and {files.key} cannot be used: {error}.",
            "Run the pki role of kvmft.core for this host.",
        ) from error
    return result


def peer_names(sock: ssl.SSLSocket) -> set[str]:
    """The DNS names in the peer's certificate."""
    certificate = sock.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    return {str(name[1]) for name in names if name[0] == "DNS"}


def pin(sock: ssl.SSLSocket, expected: str) -> None:
    """Raise unless the peer's certificate is for host `expected`."""
    names = peer_names(sock)
    if expected not in names:
        sock.close()
        raise KvmftError(
            "peer_name_mismatch",
            f"The peer's certificate is for {sorted(names)}, but {expected!r} was expected.",
            "Check the FT addresses in the inventory, and that the pki role ran on both hosts.",
        )


def _refused(peer: str, address: str, error: Exception) -> KvmftError:
    if isinstance(error, ssl.SSLError):
        return KvmftError(
            "peer_certificate_refused",
            f"TLS with {peer} at {address} failed: {error}.",
            "Both hosts need certificates of the same CA; run the pki role on both.",
        )
    return KvmftError(
        "ft_network_down",
        f"{peer} does not answer at {address} on the FT network: {error}.",
        "Check cabling, address and nftables of the FT network, and that kvmft-agent runs there.",
    )


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def connect(peer: str, address: tuple[str, int], files: TlsFiles) -> ssl.SSLSocket:
    """A connected, authenticated socket to host `peer`. Blocks at most HANDSHAKE_TIMEOUT."""
    tls = context(files, server=False)
    where = f"{address[0]}:{address[1]}"
    try:
        raw = socket.create_connection(address, timeout=HANDSHAKE_TIMEOUT)
        _tune(raw)
        sock = tls.wrap_socket(raw, server_hostname=peer)
    except (OSError, ssl.SSLError) as error:
        raise _refused(peer, where, error) from error
    pin(sock, peer)
    return sock


def listen(address: str, ports: tuple[int, int]) -> socket.socket:
    """A listening socket on the first free port of the inclusive range `ports`."""
    last: OSError | None = None
    for port in range(ports[0], ports[1] + 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
            sock.listen(8)
        except OSError as error:
            sock.close()
            last = error
            continue
        sock.setblocking(False)
        return sock
    raise KvmftError(
        "ft_log_no_port",
        f"No port of {ports[0]}-{ports[1]} on {address} can be listened on: {last}.",
        "Check that the FT interface has this address, and widen ft_log_ports if all are in use.",
    )


def accept(listener: socket.socket, peer: str, files: TlsFiles) -> ssl.SSLSocket:
    """Accept one connection and authenticate it as `peer`; a stranger raises and gets nothing."""
    raw, address = listener.accept()
    raw.settimeout(HANDSHAKE_TIMEOUT)
    _tune(raw)
    try:
        sock = context(files, server=True).wrap_socket(raw, server_side=True)
    except (OSError, ssl.SSLError) as error:
        raw.close()
        raise _refused(peer, f"{address[0]}:{address[1]}", error) from error
    pin(sock, peer)
    return sock


class LogStream:
    """Frames over an authenticated socket, driven by the reactor.

    `on_frame(frame)` gets every whole frame; `on_lost(closed, reason)` is called once: `closed` is
    true when the peer's kernel ended the connection, false when we could not go on.
    `queued` is the number of bytes handed to `send` that TLS has not taken yet.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: ssl.SSLSocket,
        allocate: Callable[[Header], memoryview],
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[bool, str], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._decoder = Decoder(allocate)
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._out: deque[memoryview] = deque()
        self._want_write = False
        self._closed = False
        self._broken = ""
        self.on_drained: Callable[[], None] | None = None  # called once, when all is sent
        self.queued = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.last_heard = reactor.now()
        sock.setblocking(False)
        reactor.add(sock.fileno(), READ, self._ready)

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Queue `parts` in order and send what fits. Buffers must not change until sent."""
        if self._closed or self._broken:
            return
        for part in parts:
            view = memoryview(part).cast("B")
            if len(view):
                self._out.append(view)
                self.queued += len(view)
        self._flush()

    def close(self) -> None:
        """Close without a further callback. What was queued and not yet sent is dropped."""
        if self._closed:
            return
        self._closed = True
        self._reactor.remove(self._sock.fileno())
        self._out.clear()
        try:
            self._sock.close()
        except OSError:
            pass

    def flush_and_close(self, seconds: float) -> None:
        """Give queued bytes up to `seconds` to leave (a farewell), then close."""
        self._reactor.run_until(lambda: self._closed or not self._out, seconds)
        self.close()

    def _lost(self, closed: bool, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_lost(closed, reason)

    def _ready(self, mask: int) -> None:
        if mask & (READ | HANGUP):
            self._receive()
        if not self._closed and mask & WRITE:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                view = self._out[0]
                count = self._sock.send(view[:SEND_SLICE])
                self.sent_bytes += count
                self.queued -= count
                if count == len(view):
                    self._out.popleft()
                else:
                    self._out[0] = view[count:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
            pass
        except (OSError, ssl.SSLError) as error:
            self._broken = f"the FT log cannot be sent: {error}"
            self._out.clear()
            self.queued = 0
            self._watch_write(False)
            # Through the reactor: a frame must not be handled in the middle of what was sending.
            self._reactor.call_later(0, self._hear_out)
            return
        self._watch_write(bool(self._out))
        if not self._out and self.on_drained is not None:
            # Through the reactor and not from here: the callback sends again, which would recurse.
            callback, self.on_drained = self.on_drained, None
            self._reactor.call_later(0, callback)

    def _hear_out(self) -> None:
        """The peer is gone. What it said before is heard first: it may have relieved this side."""
        before = -1
        while not self._closed and self.received_bytes > before:
            before = self.received_bytes
            self._receive()
        self._lost(True, self._broken)

    def _watch_write(self, wanted: bool) -> None:
        if wanted != self._want_write and not self._closed:
            self._want_write = wanted
            self._reactor.modify(self._sock.fileno(), READ | (WRITE if wanted else 0))

    def _receive(self) -> None:
        try:
            for __ in range(READS_PER_TURN):
                count = self._sock.recv_into(self._decoder.want())
                if count == 0:
                    self._lost(True, "the peer closed the FT log")
                    return
                self.received_bytes += count
                self.last_heard = self._reactor.now()
                frame = self._decoder.received(count)
                if frame is not None:
                    self._on_frame(frame)
                    if self._closed:
                        return
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return
        except WireError as error:
            self._lost(False, str(error))
            return
        except (OSError, ssl.SSLError) as error:
            self._lost(True, f"the FT log broke: {error}")
            return
        if self._sock.pending():
            # TLS holds decrypted bytes that epoll does not know of: come back soon.
            self._reactor.call_later(0, self._receive_again)

    def _receive_again(self) -> None:
        if not self._closed:
            self._receive()
