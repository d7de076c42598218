"""What this machine can do at best: copying pages, the cipher, and the FT log without a guest."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from kvmft.adapters import ftlog
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import Frame, FrameType, Header, encode_header
from tests.pair.harness import make_pki

PAGE = 4096
FRAME = 1 << 20
HOSTS = ("node-a", "node-b")


def memcpy(pages: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` plain copies of so many pages, one after the other in memory."""
    source, target = (np.ones(pages * PAGE, dtype=np.uint8) for __ in range(2))
    found = []
    for __ in range(runs):
        begun = time.perf_counter()
        ctypes.memmove(target.ctypes.data, source.ctypes.data, pages * PAGE)
        found.append((time.perf_counter() - begun) * 1000)
    return found


def cipher() -> float:
    """Bytes a second of AES-256-GCM in records of 16 KiB, as `openssl speed` has it on one core."""
    done = subprocess.run(["openssl", "speed", "-mr", "-elapsed", "-seconds", "2", "-bytes", "16384", "-evp", "aes-256-gcm"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    found = re.search(r"^\+F:\d+:[^:]+:([\d.]+)", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"openssl speed printed no figure:\n{done.stdout}")
    return float(found[1])


def log_throughput(seconds: float) -> float:
    """Bytes a second that the FT log carries between two processes over loopback, TLS and frames included."""
    with tempfile.TemporaryDirectory() as directory:
        pki = Path(directory) / "pki"
        make_pki(pki, HOSTS)
        files = {host: ftlog.TlsFiles(str(pki / "ca.pem"), str(pki / f"{host}.pem"), str(pki / f"{host}.key"))
                 for host in HOSTS}  # fmt: skip
        listener = ftlog.listen("127.0.0.1", (20000, 29999))
        listener.setblocking(True)
        port = listener.getsockname()[1]
        sender = multiprocessing.Process(target=_send, args=(port, files["node-a"], seconds))
        sender.start()
        sock = ftlog.accept(listener, "node-a", files["node-b"])
        reactor, buffer = Reactor(), bytearray(FRAME)
        times: list[tuple[float, int]] = []

        def allocate(header: Header) -> memoryview:
            return memoryview(buffer)[: header.length]

        def took(_frame: Frame) -> None:
            times.append((time.perf_counter(), stream.received_bytes))

        stream = ftlog.LogStream(reactor, sock, allocate, took, lambda closed, reason: reactor.stop())
        reactor.run()
        sender.join()
        listener.close()
    (first, start), (last, end) = times[len(times) // 10], times[-1]
    return (end - start) / (last - first)


def _send(port: int, files: ftlog.TlsFiles, seconds: float) -> None:
    reactor = Reactor()
    sock = ftlog.connect("node-b", ("127.0.0.1", port), files)
    stream = ftlog.LogStream(reactor, sock, lambda header: memoryview(bytearray(header.length)),
                             lambda frame: None, lambda closed, reason: reactor.stop())  # fmt: skip
    body, head = memoryview(bytes(range(256)) * (FRAME // 256)), encode_header(FrameType.MEMORY, 0, FRAME)
    until = time.perf_counter() + seconds

    def pump() -> None:
        if time.perf_counter() >= until:
            stream.flush_and_close(5.0)
            reactor.stop()
            return
        for __ in range(8):
            stream.send(head, body)
        stream.on_drained = pump
        if not stream.queued:
            reactor.call_later(0, pump)

    pump()
    reactor.run()
