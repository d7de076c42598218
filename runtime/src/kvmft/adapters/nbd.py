"""An NBD server on a unix socket: how QEMU's mirror hands us each disk write.

Protocol: NetworkBlockDevice/nbd doc/proto.md, fixed newstyle handshake, simple replies. A write is
answered as soon as it is in the sink: the guest never waits for the network, which output commit
makes safe. Malformed bytes end the connection (QEMU then reports the mirror as failed and the guest
runs on).
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from kvmft.adapters.reactor import READ, WRITE, Reactor

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPLY_OPTION_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
REP_ACK, REP_INFO = 1, 3
REP_ERR_UNSUP = 0x80000001
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
TRANSMISSION_FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6
"""HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES"""
EIO, EINVAL, ENOSPC = 5, 22, 28
MAX_PAYLOAD = 32 << 20
"""The largest request a client may make (proto.md: clients should assume 32 MiB)."""
MAX_OPTION = 8192
EXPORT_NAME_PADDING = 124
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class DiskReceiver(Protocol):
    """Where captured operations go. Offsets and lengths in bytes."""

    def write(self, offset: int, data: memoryview) -> None:
        """`data` is only valid during the call."""

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros."""

    def flush(self) -> None:
        """Everything before is to be durable."""


class _ProtocolError(Exception):
    pass


class _Connection:
    """One client: a buffer, and the function that says what to do with the next bytes."""

    def __init__(self, server: NbdServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        # Anonymous memory takes no space, and no time, before it is written.
        self._buffer = mmap.mmap(-1, MAX_PAYLOAD + _REQUEST.size)
        self._have = 0
        self._need = 4
        self._step: Callable[[memoryview], None] = self._client_flags
        self._out = bytearray()
        self._request: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._reading = True
        self._no_zeroes = False
        sock.setblocking(False)
        server.reactor.add(sock.fileno(), READ, self._ready)

    def greet(self) -> None:
        """Send the handshake's first bytes; OSError when the client has gone already."""
        flags = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES
        self._send(struct.pack(">QQH", NBDMAGIC, IHAVEOPT, flags))

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._server.reactor.remove(self._sock.fileno())
            self._sock.close()

    def watch(self) -> None:
        """Adjust what the reactor waits for; while held we do not read, so QEMU must wait."""
        if self._sock.fileno() >= 0:
            events = (0 if self._server.held else READ) | (WRITE if self._out else 0)
            self._server.reactor.modify(self._sock.fileno(), events)

    def _ready(self, mask: int) -> None:
        try:
            if mask & WRITE:
                self._flush()
            if self._server.held:
                if mask & ~(WRITE | READ):
                    # epoll would report it again and again; what it sent was never answered.
                    raise _ProtocolError("the client hung up")
            elif mask & ~WRITE:
                self._receive()
        except (_ProtocolError, OSError) as error:
            self.close()
            self._server.lost(self, str(error))

    def _receive(self) -> None:
        view = memoryview(self._buffer)
        while not self._server.held:
            try:
                count = self._sock.recv_into(view[self._have :])
            except BlockingIOError:
                return
            if count == 0:
                raise _ProtocolError("the client closed the connection")
            self._have += count
            begin = 0
            while self._have - begin >= self._need:
                piece = view[begin : begin + self._need]
                begin += self._need
                self._step(piece)
            rest = self._have - begin
            if begin and rest:
                view[:rest] = bytes(view[begin : begin + rest])
            self._have = rest

    def _send(self, data: bytes) -> None:
        self._out += data
        self._flush()

    def _flush(self) -> None:
        while self._out:
            try:
                count = self._sock.send(self._out)
            except BlockingIOError:
                break
            del self._out[:count]
        self.watch()

    # -- handshake --------------------------------------------------------------------------------

    def _client_flags(self, data: memoryview) -> None:
        flags = int.from_bytes(data, "big")
        if flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES):
            raise _ProtocolError("the client asks for unknown handshake flags")
        self._no_zeroes = bool(flags & FLAG_NO_ZEROES)
        self._need, self._step = 16, self._option_head

    def _option_head(self, data: memoryview) -> None:
        magic, option, length = struct.unpack(">QII", data)
        if magic != IHAVEOPT or length > MAX_OPTION:
            raise _ProtocolError("the client's option is malformed")
        self._option = option
        self._need, self._step = length, self._option_body
        if length == 0:
            self._option_body(data[:0])

    def _option_body(self, _data: memoryview) -> None:
        self._need, self._step = 16, self._option_head
        size = self._server.size
        if self._option == OPT_EXPORT_NAME:
            padding = b"" if self._no_zeroes else bytes(EXPORT_NAME_PADDING)
            self._send(struct.pack(">QH", size, TRANSMISSION_FLAGS) + padding)
            self._need, self._step = _REQUEST.size, self._request_head
        elif self._option in (OPT_GO, OPT_INFO):
            info = struct.pack(">HQH", INFO_EXPORT, size, TRANSMISSION_FLAGS)
            blocks = struct.pack(">HIII", INFO_BLOCK_SIZE, 1, 4096, MAX_PAYLOAD)
            self._reply_option(REP_INFO, info)
            self._reply_option(REP_INFO, blocks)
            self._reply_option(REP_ACK, b"")
            if self._option == OPT_GO:
                self._need, self._step = _REQUEST.size, self._request_head
        elif self._option == OPT_ABORT:
            self._reply_option(REP_ACK, b"")
            raise _ProtocolError("the client gave up the handshake")
        else:
            self._reply_option(REP_ERR_UNSUP, b"")

    def _reply_option(self, kind: int, data: bytes) -> None:
        self._send(struct.pack(">QIII", REPLY_OPTION_MAGIC, self._option, kind, len(data)) + data)

    # -- transmission -----------------------------------------------------------------------------

    def _request_head(self, data: memoryview) -> None:
        magic, _flags, kind, handle, offset, length = _REQUEST.unpack(data)
        if magic != REQUEST_MAGIC:
            raise _ProtocolError("the client's request is malformed")
        self._request = (kind, handle, offset, length)
        if kind == CMD_WRITE:
            if length > MAX_PAYLOAD:
                raise _ProtocolError(f"the client writes {length} bytes at once")
            if length:
                self._need, self._step = length, self._payload
                return
        self._perform(data[:0])

    def _payload(self, data: memoryview) -> None:
        self._need, self._step = _REQUEST.size, self._request_head
        self._perform(data)

    def _perform(self, data: memoryview) -> None:
        kind, handle, offset, length = self._request
        sink, error = self._server.sink, 0
        if kind == CMD_DISC:
            raise _ProtocolError("the client disconnected")
        if kind != CMD_FLUSH and offset + length > self._server.size:
            error = ENOSPC if kind in (CMD_WRITE, CMD_WRITE_ZEROES) else EINVAL
        elif kind == CMD_WRITE:
            sink.write(offset, data)
        elif kind == CMD_WRITE_ZEROES or kind == CMD_TRIM:
            sink.zero(offset, length)
        elif kind == CMD_FLUSH:
            sink.flush()
        elif kind == CMD_READ:
            error = EIO  # captured writes are not kept here; a mirror never reads its target
        else:
            error = EINVAL
        self._send(_REPLY.pack(REPLY_MAGIC, error, handle))
        if error and kind in (CMD_WRITE, CMD_WRITE_ZEROES, CMD_TRIM):
            end = offset + length
            self._server.refused(f"a write up to byte {end} of a disk of {self._server.size} bytes")


class NbdServer:
    """Serves one export of `size` bytes on the unix socket `path`, owned by `owner` (uid, gid).

    `on_lost` hears the reason when writes no longer reach `sink`: a connection ended, or a write
    was refused.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        size: int,
        sink: DiskReceiver,
        owner: tuple[int, int] | None = None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.reactor = reactor
        self.path = path
        self.size = size
        self.sink = sink
        self.held = False
        self._on_lost = on_lost
        self._connections: list[_Connection] = []
        self._listener = listen_unix(path, owner)
        reactor.add(self._listener.fileno(), READ, self._accept)

    def _accept(self, _mask: int) -> None:
        try:
            sock, __ = self._listener.accept()
        except OSError:
            return
        connection = _Connection(self, sock)
        self._connections.append(connection)
        try:
            connection.greet()
        except OSError as error:
            connection.close()
            self.lost(connection, str(error))

    def lost(self, connection: _Connection, reason: str) -> None:
        """A connection ended; called by the connection itself."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._on_lost(reason)

    def refused(self, reason: str) -> None:
        """A write was answered with an error, so the client's disk and its copy differ from now on."""
        self._on_lost(reason)

    def hold(self) -> None:
        """Stop reading: writers wait. The caller must `release` for the VM to be able to stop."""
        self.held = True
        for connection in self._connections:
            connection.watch()

    def release(self) -> None:
        """Go on after `hold`."""
        self.held = False
        for connection in self._connections:
            connection.watch()

    def close(self) -> None:
        """Close all connections and remove the socket."""
        self.reactor.remove(self._listener.fileno())
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        unlink_quietly(self.path)


def listen_unix(path: str, owner: tuple[int, int] | None) -> socket.socket:
    """A listening, non-blocking unix socket at `path`, replacing one left behind there."""
    unlink_quietly(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600)
    if owner is not None:
        os.chown(path, *owner)
    sock.listen(4)
    sock.setblocking(False)
    return sock


def unlink_quietly(path: str) -> None:
    """Remove `path` if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
