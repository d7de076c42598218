"""The VM's network output, through our hands: QEMU's filter-redirector with two socket chardevs.

QEMU writes each packet of the guest to `out` (be32 length, be32 virtio header length, data:
net/filter-mirror.c, filter_send) and sends to the network what it reads from `in`. While a socket
is closed it drops the guest's packets: the capture fails closed (I2). The stream needs no parsing,
except that a cut must not go through a packet, so lengths are followed.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmft.adapters.nbd import listen_unix, unlink_quietly
from kvmft.adapters.qmp import Command, command
from kvmft.adapters.reactor import READ, WRITE, Reactor

_HEAD = struct.Struct(">II")
READ_SIZE = 1 << 18
MAX_PACKET = 1 << 20


@dataclass(frozen=True)
class Segment:
    """Whole packets of one epoch, as QEMU wrote them; `packets` counts them."""

    data: bytes
    packets: int


def attach_commands(netdev: str, name: str, directory: str) -> list[Command]:
    """The QMP commands that put a redirector named `name` into the output of `netdev`."""
    commands = []
    for way in ("out", "in"):
        address = {"type": "unix", "data": {"path": f"{directory}/{name}-{way}.sock"}}
        backend = {"type": "socket", "data": {"addr": address, "server": False, "reconnect": 1}}
        commands.append(command("chardev-add", id=f"{name}-{way}", backend=backend))
    commands.append(
        Command(
            "object-add",
            {
                "qom-type": "filter-redirector",
                "id": f"{name}-hold",
                "netdev": netdev,
                "queue": "rx",
                "outdev": f"{name}-out",
                "indev": f"{name}-in",
                "vnet_hdr_support": True,
            },
        )
    )
    return commands


def detach_commands(netdev: str, name: str, directory: str) -> list[Command]:
    """The QMP commands that undo `attach_commands`; each may be refused when nothing is there."""
    return [
        command("object-del", id=f"{name}-hold"),
        command("chardev-remove", id=f"{name}-out"),
        command("chardev-remove", id=f"{name}-in"),
    ]


def is_connected(chardevs: list[dict[str, Any]], name: str) -> bool:
    """Whether QEMU itself knows both chardevs of `name` as connected, from `query-chardev`'s answer.

    It learns that a moment after we accept; a packet that the guest sends in between is dropped.
    """
    ours = [each for each in chardevs if each["label"] in (f"{name}-out", f"{name}-in")]
    return len(ours) == 2 and not any(each["filename"].startswith("disconnected") for each in ours)


class RedirectorPort:
    """Both sockets of one interface. `on_output` is called when a packet begins to wait."""

    def __init__(
        self,
        reactor: Reactor,
        out_path: str,
        in_path: str,
        on_output: Callable[[], None],
        owner: tuple[int, int] | None = None,
    ) -> None:
        self._reactor = reactor
        self._paths = (out_path, in_path)
        self._on_output = on_output
        self._listeners = [listen_unix(path, owner) for path in self._paths]
        self._out: socket.socket | None = None
        self._in: socket.socket | None = None
        self._waiting = bytearray()
        self._whole = 0
        self._packets = 0
        self._segments_bytes = 0
        self._to_send: deque[memoryview] = deque()
        reactor.add(self._listeners[0].fileno(), READ, self._accept_out)
        reactor.add(self._listeners[1].fileno(), READ, self._accept_in)

    @property
    def connected(self) -> bool:
        """True when QEMU is connected to both sockets."""
        return self._out is not None and self._in is not None

    @property
    def held_bytes(self) -> int:
        """Bytes of output that wait for a commit, cut or not."""
        return len(self._waiting) + self._segments_bytes

    @property
    def idle(self) -> bool:
        """True when QEMU has read everything that was released."""
        if self._to_send:
            return False
        if self._in is None:
            return True
        unread = bytearray(4)
        fcntl.ioctl(self._in.fileno(), termios.TIOCOUTQ, unread)
        return int.from_bytes(unread, "little") == 0

    def _accept_out(self, _mask: int) -> None:
        try:
            sock, __ = self._listeners[0].accept()
        except OSError:  # QEMU went away between connecting and now; it tries again
            return
        self._close_out()
        self._waiting.clear()
        self._whole = self._packets = 0
        sock.setblocking(False)
        self._out = sock
        self._reactor.add(sock.fileno(), READ, self._out_ready)

    def _accept_in(self, _mask: int) -> None:
        try:
            sock, __ = self._listeners[1].accept()
        except OSError:
            return
        self._close_in()
        sock.setblocking(False)
        self._in = sock
        self._reactor.add(sock.fileno(), 0, self._in_ready)

    def _out_ready(self, _mask: int) -> None:
        before = self._packets
        self.drain()
        if self._packets and not before:
            self._on_output()

    def drain(self) -> int:
        """Read everything that QEMU has written so far; the number of bytes."""
        total = 0
        while self._out is not None:
            try:
                data = self._out.recv(READ_SIZE)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._close_out()
                break
            self._waiting += data
            total += len(data)
        if total:
            self._count_packets()
        return total

    def _count_packets(self) -> None:
        have = len(self._waiting)
        while have - self._whole >= _HEAD.size:
            length, __ = _HEAD.unpack_from(self._waiting, self._whole)
            if length > MAX_PACKET:
                # Not QEMU's format: shut the output rather than release what we do not know.
                self._close_out()
                self._waiting.clear()
                self._whole = self._packets = 0
                return
            if have - self._whole < _HEAD.size + length:
                return
            self._whole += _HEAD.size + length
            self._packets += 1

    def cut(self) -> Segment:
        """Take the whole packets received since the last cut."""
        segment = Segment(bytes(self._waiting[: self._whole]), self._packets)
        del self._waiting[: self._whole]
        self._whole = self._packets = 0
        self._segments_bytes += len(segment.data)
        return segment

    def release(self, segment: Segment) -> None:
        """Send the packets of `segment` to the network, after those released before."""
        self._segments_bytes -= len(segment.data)
        if segment.data and self._in is not None:
            self._to_send.append(memoryview(segment.data))
            self._flush()

    def _in_ready(self, mask: int) -> None:
        if mask & ~WRITE:
            self._close_in()
        else:
            self._flush()

    def _flush(self) -> None:
        while self._to_send and self._in is not None:
            try:
                count = self._in.send(self._to_send[0])
            except BlockingIOError:
                break
            except OSError:
                self._close_in()
                return
            if count == len(self._to_send[0]):
                self._to_send.popleft()
            else:
                self._to_send[0] = self._to_send[0][count:]
        if self._in is not None:
            self._reactor.modify(self._in.fileno(), WRITE if self._to_send else 0)

    def _close_out(self) -> None:
        if self._out is not None:
            self._reactor.remove(self._out.fileno())
            self._out.close()
            self._out = None

    def _close_in(self) -> None:
        if self._in is not None:
            self._reactor.remove(self._in.fileno())
            self._in.close()
            self._in = None
        self._to_send.clear()

    def close(self) -> None:
        """Close everything and remove the sockets; held output is thrown away."""
        self._close_out()
        self._close_in()
        for listener, path in zip(self._listeners, self._paths, strict=True):
            self._reactor.remove(listener.fileno())
            listener.close()
            unlink_quietly(path)
