"""QEMU's monitor, asynchronous and pipelined: our own socket, or libvirt's passthrough.

Commands of one batch are written at once and answered in order (QEMU handles in-band commands one
after the other: docs/interop/qmp-spec). `execute` is for set-up and tear-down: it turns the reactor
until the answer is there, so nothing else that QEMU may be waiting for stands still meanwhile.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from kvmft.adapters.reactor import READ, Reactor
from kvmft.errors import KvmftError

EXECUTE_TIMEOUT = 30.0


@dataclass(frozen=True)
class Command:
    """One QMP command; argument names are QMP's own."""

    name: str
    arguments: dict[str, Any]

    def to_json(self) -> str:
        """What QMP expects; it needs nothing behind it."""
        value: dict[str, Any] = {"execute": self.name}
        if self.arguments:
            value["arguments"] = self.arguments
        # QEMU takes its input byte by byte, six system calls each (monitor.c: monitor_can_read): short is quick.
        return json.dumps(value, separators=(",", ":"))


def command(name: str, **arguments: Any) -> Command:
    """`command("object-del", id="x")`; underscores in argument names become hyphens."""
    return Command(name, {key.replace("_", "-"): value for key, value in arguments.items()})


class MonitorError(KvmftError):
    """QEMU refused a command, or its monitor is gone."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__("monitor", f"QEMU's monitor: {what}: {why}.", "See QEMU's log.")


Reply = dict[str, Any]
"""`{"return": ...}` or `{"error": {"class", "desc"}}`."""


class Monitor(Protocol):
    """What the worker needs of a monitor."""

    def batch(
        self,
        commands: list[Command],
        done: Callable[[list[Reply]], None],
        first: Callable[[Reply], None] | None = None,
    ) -> None:
        """Send `commands` together; `done` gets one reply each, from the reactor's thread.

        `first` gets the first one's as soon as it is there, while QEMU works on the others.
        """

    def execute(self, name: str, **arguments: Any) -> Any:
        """One command, waited for; its return value, or MonitorError."""

    def perform(self, item: Command) -> Any:
        """Like `execute`, for a command made elsewhere."""

    def close(self) -> None:
        """Let go of the monitor; the VM is not touched."""


class _Waiting(Monitor):
    """`execute` on top of `batch`, shared by both monitors."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor

    def execute(self, name: str, **arguments: Any) -> Any:
        return self.perform(command(name, **arguments))

    def perform(self, item: Command) -> Any:
        replies: list[Reply] = []
        name = item.name
        self.batch([item], replies.extend)
        if not self._reactor.run_until(lambda: bool(replies), EXECUTE_TIMEOUT):
            raise MonitorError(name, f"no answer within {EXECUTE_TIMEOUT:.0f} s")
        if "error" in replies[0]:
            raise MonitorError(name, str(replies[0]["error"].get("desc", replies[0]["error"])))
        return replies[0]["return"]


@dataclass
class _Batch:
    """Commands under way on a SocketMonitor."""

    wanted: int
    done: Callable[[list[Reply]], None]
    first: Callable[[Reply], None] | None
    replies: list[Reply] = field(default_factory=list)


class SocketMonitor(_Waiting):
    """A QMP socket of our own (`-qmp unix:PATH,server=on,wait=off`)."""

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        on_event: Callable[[str, dict[str, Any]], None] = lambda name, data: None,
    ) -> None:
        super().__init__(reactor)
        self._on_event = on_event
        self._buffer = b""
        self._batches: list[_Batch] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(5)
        try:
            self._sock.connect(path)
            greeting = self._sock.makefile("rb", buffering=0).readline()
            if b"QMP" not in greeting:
                raise MonitorError("greeting", repr(greeting))
            self._sock.setblocking(False)
        except OSError as error:
            self._sock.close()
            raise MonitorError(f"socket {path}", str(error)) from error
        self._open = True
        reactor.add(self._sock.fileno(), READ, self._readable)
        self.execute("qmp_capabilities")

    def batch(
        self,
        commands: list[Command],
        done: Callable[[list[Reply]], None],
        first: Callable[[Reply], None] | None = None,
    ) -> None:
        if not self._open:
            raise MonitorError(commands[0].name, "the monitor is closed")
        self._batches.append(_Batch(len(commands), done, first))
        data = "".join(item.to_json() for item in commands).encode()
        try:
            sent = self._sock.send(data)
            while sent < len(data):
                # The monitor's buffer holds far more than a batch; QEMU is reading right now.
                sent += self._sock.send(data[sent:])
        except BlockingIOError as error:
            raise MonitorError(commands[0].name, "the monitor does not read") from error
        except OSError as error:
            self._batches.pop()
            raise MonitorError(commands[0].name, str(error)) from error

    def _readable(self, _mask: int) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._message(json.loads(line))

    def _message(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"], message.get("data", {}))
            return
        if not self._batches:
            return
        batch = self._batches[0]
        batch.replies.append(message)
        if len(batch.replies) == 1 and batch.first is not None:
            batch.first(message)
        if len(batch.replies) == batch.wanted:
            self._batches.pop(0)
            batch.done(batch.replies)

    def _hang_up(self) -> None:
        self.close()
        batches, self._batches = self._batches, []
        gone: Reply = {"error": {"class": "Gone", "desc": "QEMU closed its monitor"}}
        for batch in batches:
            batch.done(batch.replies + [gone] * (batch.wanted - len(batch.replies)))

    def close(self) -> None:
        if self._open:
            self._open = False
            self._reactor.remove(self._sock.fileno())
            self._sock.close()


class LibvirtMonitor(_Waiting):
    """libvirt's monitor passthrough, for a VM that was started without a socket of ours.

    libvirt's call blocks, so it runs in a thread of its own; about 1 ms per command dearer than
    SocketMonitor (design section 2, item 4). QEMU's events do not come through here.
    """

    def __init__(self, reactor: Reactor, domain: Any) -> None:
        super().__init__(reactor)
        import libvirt_qemu  # of Debian's python3-libvirt; only hosts have it

        self._call = libvirt_qemu.qemuMonitorCommand
        self._domain = domain
        self._work: queue.SimpleQueue[
            tuple[list[Command], Callable[[list[Reply]], None], Callable[[Reply], None] | None] | None
        ] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="monitor", daemon=True).start()

    def batch(
        self,
        commands: list[Command],
        done: Callable[[list[Reply]], None],
        first: Callable[[Reply], None] | None = None,
    ) -> None:
        self._work.put((commands, done, first))

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            commands, done, first = item
            replies = []
            for each in commands:
                replies.append(self._one(each))
                if len(replies) == 1 and first is not None:
                    self._reactor.call_soon_threadsafe(partial(first, replies[0]))
            self._reactor.call_soon_threadsafe(partial(done, replies))

    def _one(self, item: Command) -> Reply:
        try:
            reply: Reply = json.loads(self._call(self._domain, item.to_json(), 0))
            return reply
        except Exception as error:  # libvirtError, or JSON of a dying QEMU: one failed command
            return {"error": {"class": "Libvirt", "desc": str(error)}}

    def close(self) -> None:
        self._work.put(None)
