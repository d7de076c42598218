"""The FT log to the other side, as both workers use it: sending, receiving, and how it ended."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Protocol

from kvmft.adapters import ftlog
from kvmft.adapters.reactor import Reactor
from kvmft.core import events as ev
from kvmft.core.wire import Frame, FrameType, Header, encode
from kvmft.worker.config import WorkerConfig
from kvmft.worker.life import Life
from kvmft.worker.link import AgentLink


class PeerUser(Protocol):
    """The worker that a PeerLink serves."""

    def allocate(self, header: Header) -> memoryview:
        """Room for a frame's body; WireError when such a frame may not come now."""

    def frame(self, frame: Frame) -> None:
        """A whole frame came."""

    def peer_lost(self, how: ev.Loss, reason: str, **figures: Any) -> None:
        """The connection ended, or the other side is silent for too long."""

    @property
    def position(self) -> int:
        """The epoch that heartbeats tell."""

    @property
    def paired(self) -> bool:
        """Whether silence is judged by the VM's own detection time from now on."""


class PeerLink:
    """At most one connection at a time; without one, what is sent is dropped."""

    def __init__(
        self, reactor: Reactor, config: WorkerConfig, link: AgentLink, user: PeerUser
    ) -> None:
        self._reactor = reactor
        self._user = user
        self._stream: ftlog.LogStream | None = None
        self._sent_before = 0
        self.life = Life(
            reactor, config, link, lambda: user.paired, self._heard, self._heartbeat, self._silent
        )

    def open(self, sock: ssl.SSLSocket) -> None:
        """Use `sock`, whose handshake is done."""
        self._stream = ftlog.LogStream(
            self._reactor, sock, self._user.allocate, self._user.frame, self._stream_lost
        )
        self.life.begin()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._stream is not None

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return self._stream.queued if self._stream is not None else 0

    @property
    def sent_bytes(self) -> int:
        """Bytes sent so far, over all connections."""
        return self._sent_before + (self._stream.sent_bytes if self._stream else 0)

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Queue one frame, in parts."""
        if self._stream is not None:
            self._stream.send(*parts)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once nothing is queued any more."""
        if self._stream is not None:
            self._stream.on_drained = callback

    def show_life(self) -> None:
        """Signs of life, if the last ones are not of just now; also from within long work."""
        self.life.show()

    def _heard(self) -> float:
        return self._stream.last_heard if self._stream is not None else 0.0

    def _heartbeat(self) -> bool:
        if self._stream is None or self._stream.queued:
            return False
        self.send(encode(FrameType.HEARTBEAT, self._user.position))
        return True

    def _silent(self, reason: str, silence: float) -> None:
        self._user.peer_lost(ev.Loss.SILENCE, reason, detection_ms=round(silence * 1000, 1))

    def _stream_lost(self, closed: bool, reason: str) -> None:
        self._user.peer_lost(ev.Loss.CLOSED if closed else ev.Loss.SILENCE, reason)

    def end(self) -> None:
        """The worker is done: no sign of life and no judgement any more."""
        self.life.end()

    def flush_and_close(self) -> None:
        """Send what is queued, for half a second at most, and close the connection."""
        if self._stream is not None:
            self._stream.flush_and_close(0.5)

    def drop(self) -> None:
        """Close the connection at once and forget it."""
        self.life.end()
        if self._stream is not None:
            self._sent_before += self._stream.sent_bytes
            self._stream.close()
            self._stream = None
