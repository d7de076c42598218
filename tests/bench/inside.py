"""What the PostgreSQL guest gets done: processor, disk and network, timed from outside.

The guest's own clock loses time under protection, so a command in the guest prints a line before and one after, and the
time between the two is taken where they arrive. Both wait for a commit, so that the difference does not count it twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab import guests

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "guest" / "bench.pl"
HTTP, SINK, SOURCE = 8080, 9, 19
"""Ports in the guest: tests/guest/bench.pl; what throws away all it gets; what sends without end."""
PATIENCE = 300.0
LOOP = 200_000
"""Additions of one round of the processor's measurement."""
TIMES = 3
"""Each measurement is made so often."""
SEQUENTIAL_MIB, SYNCED = 32, 200
DATA, FILE = "/dev/shm/bench.data", "/root/bench.file"


class Guest:
    """A guest that is reached by SSH without a password, as the lab's PostgreSQL guest is.

    `inside` wraps a command so that it runs where the guest's network is: `Lab.inside`.
    """

    def __init__(self, inside: Callable[..., list[str]], address: str = guests.POSTGRES.address, port: int = 22) -> None:
        self._inside = inside
        self.address = address
        self._port = port

    def _ssh(self, command: str) -> list[str]:
        return self._inside(
            "ssh", "-p", str(self._port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", "-o", "BatchMode=yes", "-o", "PubkeyAuthentication=no",
            f"root@{self.address}", command,
        )  # fmt: skip

    def run(self, command: str, given: bytes = b"") -> str:
        """Run a shell command in the guest, with `given` as its standard input; its output."""
        done = subprocess.run(self._ssh(command), input=given, capture_output=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise RuntimeError(f"in the guest: {command}: exit {done.returncode}: {done.stderr.decode()[-2000:]}")
        return done.stdout.decode()

    def seconds(self, command: str) -> float:
        """How long a shell command in the guest takes."""
        marked = f"echo begin; {{ {command}; }} >/dev/null 2>&1 && echo end"
        with subprocess.Popen(self._ssh(marked), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            times = [(line, time.monotonic()) for line in process.stdout]
        if [line for line, __ in times] != [b"begin\n", b"end\n"]:
            raise RuntimeError(f"in the guest: {command} failed")
        return times[1][1] - times[0][1]

    def outside(self, *arguments: str) -> Any:
        """Run Python outside, in the guest's network; the JSON that it prints."""
        done = subprocess.run(self._inside(sys.executable, *arguments), capture_output=True, text=True, timeout=PATIENCE,
                              cwd=ROOT, check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:3])}: exit {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)


def prepare(guest: Guest) -> None:
    """Start the services and make the files that the measurements need; they last until the guest is restarted."""
    guest.run("cat > /root/bench.pl", SERVER.read_bytes())
    for service in (f"perl /root/bench.pl {HTTP}", f"socat -u -b 65536 TCP-LISTEN:{SINK},fork,reuseaddr OPEN:/dev/null,wronly",
                    f"socat -U -b 65536 TCP-LISTEN:{SOURCE},fork,reuseaddr OPEN:/dev/zero,rdonly"):  # fmt: skip
        guest.run(f"setsid {service} </dev/null >/dev/null 2>&1 &")
    # Data that is no zeros, which a disk may keep for nothing, and a file whose blocks are there already.
    guest.run(f"dd if=/dev/urandom of={DATA} bs=1M count={SEQUENTIAL_MIB} && cp {DATA} {FILE} && sync")


def rounds(guest: Guest, seconds: float) -> int:
    """So many rounds take about so long here."""
    return max(1, round(10 * seconds / guest.seconds(_compute(10))))


def _compute(count: int) -> str:
    return f"perl -e 'for (1..{count}) {{ my $x = 0; $x += $_ for 1..{LOOP} }}'"


def processor(guest: Guest, count: int) -> float:
    """Rounds a second of a program that only computes."""
    return count / guest.seconds(_compute(count))


def disk_sequential(guest: Guest) -> float:
    """MiB a second written to the disk from one end to the other, past the guest's cache."""
    taken = guest.seconds(f"dd if={DATA} of={FILE} bs=1M oflag=direct conv=notrunc,fsync")
    return SEQUENTIAL_MIB / taken


def disk_synced(guest: Guest) -> float:
    """Writes of 4 KiB a second, each of which is on the disk before the next begins."""
    return SYNCED / guest.seconds(f"dd if={DATA} of={FILE} bs=4k count={SYNCED} oflag=direct,dsync conv=notrunc")


def network(guest: Guest, direction: str, seconds: float) -> float:
    """MB a second of one TCP connection from outside `to` the guest, or `from` it."""
    port = SINK if direction == "to" else SOURCE
    found: float = guest.outside("-m", "tests.bench.stream", guest.address, str(port), str(seconds), direction)
    return found / 1e6


def http(guest: Guest, seconds: float) -> list[float]:
    """Milliseconds of HTTP requests over one connection."""
    found: list[float] = guest.outside("-m", "tests.bench.httpget", guest.address, str(HTTP), str(seconds))
    return found


def clock(guest: Guest) -> tuple[float, float, float]:
    """The host's clock, the guest's, and what they may differ by at that moment; seconds."""
    ours, theirs, apart = guest.outside("-m", "tests.bench.httpget", guest.address, str(HTTP), "clock")
    return ours, theirs, apart


def loss(before: tuple[float, float, float], after: tuple[float, float, float]) -> dict[str, float]:
    """What the guest's clock lost against the host's between two looks: `ppm`, known to `resolution_ppm`, of `seconds`."""
    ours, theirs = after[0] - before[0], after[1] - before[1]
    return {"seconds": round(ours, 2), "ppm": round((1 - theirs / ours) * 1e6),
            "resolution_ppm": round((before[2] + after[2]) / ours * 1e6)}  # fmt: skip


def speeds(guest: Guest, count: int, seconds: float) -> dict[str, list[float]]:
    """Every throughput of the guest, each `TIMES` times; `count` is of `rounds`. Names have the unit."""
    measured: dict[str, Callable[[], float]] = {
        "processor, rounds/s": lambda: processor(guest, count),
        "disk, written in order, MiB/s": lambda: disk_sequential(guest),
        "disk, 4 KiB synced, writes/s": lambda: disk_synced(guest),
        "network into the guest, MB/s": lambda: network(guest, "to", seconds),
        "network out of the guest, MB/s": lambda: network(guest, "from", seconds),
    }
    return {name: [call() for __ in range(TIMES)] for name, call in measured.items()}
