"""Whose frames of the guest does the outside world see? Recorded at the lab's switch, then judged.

`python -m tests.lab.faults.frames MAC LOG` listens to all ports of the namespace that it runs in,
until its standard input closes. A frame is written down at the port on which it comes in, so each
shows the host that sent it. LOG gets one JSON object per burst: `{"host", "first", "last", "frames"}`, times
CLOCK_REALTIME in seconds; a burst is frames of one host without another's between them.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
PACKET_OUTGOING = 4
BURST = 0.02
"""Longest burst that is written as one line, seconds."""
HOSTS = {"a-lan": "node-a", "b-lan": "node-b"}
LD_WORD, LD_HALF, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x15, 0x06
"""Opcodes of classic BPF (linux/bpf_common.h)."""


@dataclass
class Burst:
    """Frames of one host; times in seconds, CLOCK_REALTIME."""

    host: str
    first: float
    last: float
    frames: int


@dataclass(frozen=True)
class Takeover:
    """`host` got the VM, by the arbiter's word, at `time` (CLOCK_REALTIME, seconds)."""

    host: str
    time: float


def second_active(bursts: Iterable[Burst], takeovers: Iterable[Takeover], slack: float = 1.0) -> int:
    """Frames that came from a host after another one had taken the VM over and was heard.

    A takeover counts from the first frame of its host on; `slack` (seconds) is how much earlier than
    its line in the events log that frame may have been. Frames of the host before are fine until then:
    they are of the time before the switch and were only under way.
    """
    ordered = sorted(bursts, key=lambda burst: burst.first)
    starts: list[tuple[float, str]] = []
    for takeover in sorted(takeovers, key=lambda each: each.time):
        heard = [burst.first for burst in ordered
                 if burst.host == takeover.host and burst.last >= takeover.time - slack]  # fmt: skip
        if heard:
            starts.append((max(heard[0], starts[-1][0] if starts else 0.0), takeover.host))
    count = 0
    for burst in ordered:
        right = [host for start, host in starts if start <= burst.first]
        if right and right[-1] != burst.host:
            count += burst.frames
    return count


def _filter(mac: str) -> ctypes.Array[ctypes.c_char]:
    """A program that passes 64 bytes of each frame with the source address `mac`."""
    high, low = struct.unpack("!IH", bytes.fromhex(mac.replace(":", "")))
    steps = [(LD_WORD, 0, 0, 6), (JUMP_EQUAL, 0, 3, high), (LD_HALF, 0, 0, 10),
             (JUMP_EQUAL, 0, 1, low), (RETURN, 0, 0, 64), (RETURN, 0, 0, 0)]  # fmt: skip
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    return ctypes.create_string_buffer(code, len(code))


def listen(mac: str) -> socket.socket:
    """A packet socket on every interface that gets the frames sent by `mac`, with their times."""
    # Not bound to an interface: it hears also those that are plugged in later.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    program = _filter(mac)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                    struct.pack("HL", len(program) // 8, ctypes.addressof(program)))  # fmt: skip
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    return sock


def main() -> int:
    """Record until standard input closes."""
    mac, path = sys.argv[1:3]
    source = bytes.fromhex(mac.replace(":", ""))
    sock = listen(mac)
    sock.settimeout(0.2)
    done = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        done.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    burst: Burst | None = None
    with open(path, "w", encoding="utf-8") as file:

        def write(ended: Burst | None) -> None:
            if ended is not None:
                file.write(json.dumps(asdict(ended)) + "\n")
                file.flush()

        while not done.is_set():
            try:
                frame, ancillary, _, sender = sock.recvmsg(64, 64)
            except TimeoutError:
                continue
            host = HOSTS.get(sender[0])
            # A few frames may have come in before the filter was attached.
            if host is None or sender[2] == PACKET_OUTGOING or frame[6:12] != source:
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            at = seconds + nanoseconds / 1e9
            if burst is not None and burst.host == host and at - burst.first < BURST:
                burst.last, burst.frames = at, burst.frames + 1
                continue
            write(burst)
            burst = Burst(host, at, at, 1)
        write(burst)
    return 0


if __name__ == "__main__":
    sys.exit(main())
