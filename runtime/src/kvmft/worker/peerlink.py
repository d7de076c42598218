"""The FT log to the other side, as both workers use it: sending, heartbeats, and how long it was silent."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Protocol

from kvmft.adapters import ftlog
from kvmft.adapters.reactor import Reactor
from kvmft.core import events as ev
from kvmft.core.detector import SilenceDetector
from kvmft.core.wire import Frame, FrameType, Header, encode
from kvmft.worker.config import WorkerConfig

FIRST_SYNC_PATIENCE = 5.0
"""Seconds of silence that are borne until there is a pair."""


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

    def __init__(self, reactor: Reactor, config: WorkerConfig, user: PeerUser) -> None:
        self._reactor = reactor
        self._config = config
        self._user = user
        self._stream: ftlog.LogStream | None = None
        self._detector: SilenceDetector | None = None
        self._life_due = 0.0
        self._sent_before = 0
        self._ended = False

    def open(self, sock: ssl.SSLSocket) -> None:
        """Use `sock`, whose handshake is done."""
        self._stream = ftlog.LogStream(
            self._reactor, sock, self._user.allocate, self._user.frame, self._stream_lost
        )
        # Until there is a pair, silence decides nothing and only costs the work that was done.
        self._detector = SilenceDetector(
            max(self._config.detection, FIRST_SYNC_PATIENCE), self._reactor.now()
        )
        self._reactor.call_later(self._config.detection / 4, self._heartbeat)

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

    def heard(self) -> None:
        """The other side showed life just now."""
        if self._detector is not None:
            self._detector.heard(self._reactor.now())

    def show_life(self) -> None:
        """A heartbeat, if the last one is not of just now; also from within long work."""
        now = self._reactor.now()
        if self._stream is not None and self._stream.queued == 0 and now >= self._life_due:
            self._life_due = now + self._config.detection / 8
            self.send(encode(FrameType.HEARTBEAT, self._user.position))

    def _heartbeat(self) -> None:
        if self._stream is None or self._detector is None or self._ended:
            return
        now = self._reactor.now()
        self._detector.heard(self._stream.last_heard)
        if self._user.paired:
            self._detector.timeout = self._config.detection
        if self._detector.suspects(now):
            silence = self._detector.silent_for(now)
            self._user.peer_lost(ev.Loss.SILENCE, f"no sign of life for {silence * 1000:.0f} ms",
                                 detection_ms=round(silence * 1000, 1))  # fmt: skip
            return
        self.show_life()
        self._reactor.call_later(self._config.detection / 4, self._heartbeat)

    def _stream_lost(self, closed: bool, reason: str) -> None:
        self._user.peer_lost(ev.Loss.CLOSED if closed else ev.Loss.SILENCE, reason)

    def end(self) -> None:
        """The worker is done: no heartbeat and no judgement any more."""
        self._ended = True

    def flush_and_close(self) -> None:
        """Send what is queued, for half a second at most, and close the connection."""
        if self._stream is not None:
            self._stream.flush_and_close(0.5)

    def drop(self) -> None:
        """Close the connection at once and forget it."""
        if self._stream is not None:
            self._sent_before += self._stream.sent_bytes
            self._stream.close()
            self._stream = None
