"""The FT log's stream over a real TLS connection whose other end goes away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmft.adapters import ftlog
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import Frame, FrameType, Header, encode
from tests.pair.harness import make_pki


class Ends:
    """node-a's stream, and node-b's bare socket."""

    def __init__(self, directory: Path) -> None:
        make_pki(directory, ("node-a", "node-b"))
        files = {name: ftlog.TlsFiles(str(directory / "ca.pem"), str(directory / f"{name}.pem"),
                                      str(directory / f"{name}.key"))
                 for name in ("node-a", "node-b")}  # fmt: skip
        listener = socket.create_server(("127.0.0.1", 0))
        accepted: list[socket.socket] = []
        thread = threading.Thread(
            target=lambda: accepted.append(ftlog.accept(listener, "node-a", files["node-b"]))
        )
        thread.start()
        sock = ftlog.connect("node-b", listener.getsockname()[:2], files["node-a"])
        thread.join()
        listener.close()
        self.peer = accepted[0]
        self.reactor = Reactor()
        self.heard: list[str] = []
        self.stream = ftlog.LogStream(self.reactor, sock, self._allocate, self._frame, self._lost)

    def _allocate(self, header: Header) -> memoryview:
        return memoryview(bytearray(header.length))

    def _frame(self, frame: Frame) -> None:
        self.heard.append(frame.type.name)

    def _lost(self, closed: bool, reason: str) -> None:
        self.heard.append(f"lost {closed}")


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.stream.close()
    made.peer.close()


def test_the_last_word_of_a_peer_that_went_away_is_heard_before_its_loss(ends: Ends) -> None:
    """It took over and said so; this side was sending at that moment and did not read yet."""
    ends.stream.send(encode(FrameType.HEARTBEAT))
    time.sleep(0.05)
    ends.peer.send(encode(FrameType.HEARTBEAT) + encode(FrameType.RELIEVED))
    ends.peer.close()  # with something unread: the kernel resets the connection
    for __ in range(3):
        time.sleep(0.05)
        ends.stream.send(encode(FrameType.HEARTBEAT))
    ends.reactor.run_until(lambda: "lost True" in ends.heard, 5)
    assert ends.heard == ["HEARTBEAT", "RELIEVED", "lost True"]


def test_a_peer_that_went_away_silently_is_lost_once(ends: Ends) -> None:
    ends.peer.close()
    for __ in range(3):
        time.sleep(0.05)
        ends.stream.send(encode(FrameType.HEARTBEAT))
    assert ends.stream.queued == 0
    ends.reactor.run_until(lambda: bool(ends.heard), 5)
    ends.reactor.run_until(lambda: False, 0.05)
    assert ends.heard == ["lost True"]
