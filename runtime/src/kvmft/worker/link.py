"""The worker's line to its agent: JSON lines over the socket that the agent passed as fd 3."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from kvmft.adapters.reactor import READ, Reactor

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
MAX_LINE = 4 << 20


def die_with_agent() -> None:
    """Have the kernel kill this process when the agent dies, so that output stays shut (I2)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class AgentLink:
    """Commands in, messages out. `on_command` gets each line; `on_gone` is called at end of file."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_command: Callable[[dict[str, Any]], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._on_command = on_command
        self._on_gone = on_gone
        self._buffer = b""
        sock.setblocking(False)
        reactor.add(sock.fileno(), READ, self._readable)

    def send(self, **message: Any) -> None:
        """Send one message. A status that does not fit is dropped; the next one replaces it."""
        data = json.dumps(message).encode() + b"\n"
        try:
            if message.get("msg") != "status":
                self._sock.setblocking(True)
            self._sock.sendall(data)
        except BlockingIOError:
            pass
        except OSError:
            self._on_gone()
        finally:
            self._sock.setblocking(False)

    def event(self, name: str, reason: str, **data: Any) -> None:
        """One line of the events log, with the time at which it happened here."""
        self.send(msg="event", event=name, reason=reason, data=data, time=time.time())

    def _readable(self, _mask: int) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._reactor.remove(self._sock.fileno())
            self._on_gone()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._on_command(json.loads(line))
