"""Whose frames of the guest does the outside world see? Recorded at the lab's switch, then judged.

`python -m tests.lab.faults.frames MAC LOG` listens to all ports of the namespace that it runs in,
until its standard input closes. A frame is written down at the port on which it comes in, so each
shows the host that sent it. LOG gets one line of words per frame: host, time (CLOCK_REALTIME, seconds),
flow, sequence number, length, acknowledgement number and checksum of the TCP payload; `-` for the last
five when the frame is no TCP segment.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ETH_P_ALL = 3
ETH_P_IP = 0x0800
IPPROTO_TCP = 6
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
PACKET_OUTGOING = 4
FRAME = 65536 + 64
"""Longest frame, bytes: the kernel hands over segments before they are cut."""
HOSTS = {"a-lan": "node-a", "b-lan": "node-b"}
LD_WORD, LD_HALF, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x15, 0x06
"""Opcodes of classic BPF (linux/bpf_common.h)."""
HALF = 1 << 31


@dataclass(frozen=True)
class Segment:
    """What matters of a TCP segment that the guest sent."""

    flow: str
    seq: int
    length: int
    ack: int
    checksum: int

    @property
    def end(self) -> int:
        """The sequence number after it."""
        return (self.seq + self.length) % (1 << 32)


@dataclass(frozen=True)
class Frame:
    """One frame of the guest; `time` in seconds, CLOCK_REALTIME."""

    host: str
    time: float
    segment: Segment | None = None

    def __str__(self) -> str:
        tcp = self.segment
        words = "- - - - -" if tcp is None else (
            f"{tcp.flow} {tcp.seq} {tcp.length} {tcp.ack} {tcp.checksum}")  # fmt: skip
        return f"{self.host} {self.time:.6f} {words}"


@dataclass(frozen=True)
class Takeover:
    """`host` got the VM, by the arbiter's word, at `time` (CLOCK_REALTIME, seconds)."""

    host: str
    time: float


@dataclass
class Count:
    """Frames that came from a host after another one had taken the VM over and was heard."""

    late: int = 0
    """Output of a commit from which the other side went on: it had only been under way. No clock is
    trusted, so nothing can hold back a packet that was rightly released before a host froze."""
    second_active: int = 0
    """Output beyond that commit: both sides ran and were seen."""


def parse(lines: Iterable[str]) -> list[Frame]:
    """Frames from the recorder's lines; a line cut off at the end is left out."""
    found = []
    for line in lines:
        words = line.split()
        if len(words) != 7 or not line.endswith("\n"):
            continue
        host, time, flow, *numbers = words
        segment = None if flow == "-" else Segment(flow, *map(int, numbers))
        found.append(Frame(host, float(time), segment))
    return found


def count(frames: Iterable[Frame], takeovers: Iterable[Takeover], slack: float = 1.0) -> Count:
    """Judge the frames.

    A takeover counts from the first frame of its host on; `slack` (seconds) is how much earlier than
    its line in the events log that frame may have been. Frames of the host before are fine until then:
    they are of the time before the switch.
    """
    ordered = sorted(frames, key=lambda frame: frame.time)
    starts: list[tuple[float, str]] = []
    for takeover in sorted(takeovers, key=lambda each: each.time):
        heard = [frame.time for frame in ordered
                 if frame.host == takeover.host and frame.time >= takeover.time - slack]  # fmt: skip
        if heard:
            starts.append((max(heard[0], starts[-1][0] if starts else 0.0), takeover.host))
    result = Count()
    for frame in ordered:
        right = [(start, host) for start, host in starts if start <= frame.time]
        if not right or right[-1][1] == frame.host:
            continue
        start, host = right[-1]
        winner = [each for each in ordered if each.host == host and each.time >= start]
        if of_the_past(frame, winner):
            result.late += 1
        else:
            result.second_active += 1
    return result


def of_the_past(frame: Frame, winner: Sequence[Frame]) -> bool:
    """Whether `frame` shows nothing that the commit from which `winner` went on did not contain.

    The winner's first segment of a connection has the sequence number up to which its commit had sent
    and the acknowledgement of all that it had received. A frame that ends before the one and
    acknowledges no more than the other is of that past; so is one whose very bytes the winner sent.
    """
    mine = frame.segment
    if mine is None:
        return False
    theirs = [each.segment for each in winner
              if each.segment is not None and each.segment.flow == mine.flow]  # fmt: skip
    if not theirs or not _not_after(mine.ack, theirs[0].ack):
        return False
    if _not_after(mine.end, theirs[0].seq):
        return True
    return any((each.seq, each.length, each.checksum) == (mine.seq, mine.length, mine.checksum)
               for each in theirs)  # fmt: skip


def _not_after(one: int, other: int) -> bool:
    """Sequence numbers wrap around (RFC 9293, section 3.4)."""
    return (other - one) % (1 << 32) < HALF


def segment_of(frame: bytes) -> Segment | None:
    """The TCP segment in an Ethernet frame of IPv4; None when there is none."""
    if len(frame) < 54 or struct.unpack_from("!H", frame, 12)[0] != ETH_P_IP or frame[23] != IPPROTO_TCP:
        return None
    header = 14 + (frame[14] & 15) * 4
    end = 14 + struct.unpack_from("!H", frame, 16)[0]
    here, there, seq, ack, offset = struct.unpack_from("!HHIIB", frame, header)
    payload = frame[header + (offset >> 4) * 4 : end]
    flow = f"{here}>{socket.inet_ntoa(frame[30:34])}:{there}"
    return Segment(flow, seq, len(payload), ack, zlib.crc32(payload))


def _filter(mac: str) -> ctypes.Array[ctypes.c_char]:
    """A program that passes the frames with the source address `mac`."""
    high, low = struct.unpack("!IH", bytes.fromhex(mac.replace(":", "")))
    steps = [(LD_WORD, 0, 0, 6), (JUMP_EQUAL, 0, 3, high), (LD_HALF, 0, 0, 10),
             (JUMP_EQUAL, 0, 1, low), (RETURN, 0, 0, FRAME), (RETURN, 0, 0, 0)]  # fmt: skip
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
    with open(path, "w", encoding="utf-8") as file:
        while not done.is_set():
            try:
                frame, ancillary, __, sender = sock.recvmsg(FRAME, 64)
            except TimeoutError:
                continue
            host = HOSTS.get(sender[0])
            # A few frames may have come in before the filter was attached.
            if host is None or sender[2] == PACKET_OUTGOING or frame[6:12] != source:
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            file.write(f"{Frame(host, seconds + nanoseconds / 1e9, segment_of(frame))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
