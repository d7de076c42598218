"""The FT log on this machine, clear of any guest."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

from kvmft.adapters import ftlog
from kvmft.report import logspeed
from tests.pair.harness import make_pki

HOSTS = ("node-a", "node-b")


def throughput(seconds: float) -> float:
    """Bytes a second that the FT log carries between two processes over loopback, TLS and frames included."""
    with tempfile.TemporaryDirectory() as directory:
        pki = Path(directory) / "pki"
        make_pki(pki, HOSTS)
        files = {host: ftlog.TlsFiles(str(pki / "ca.pem"), str(pki / f"{host}.pem"), str(pki / f"{host}.key"))
                 for host in HOSTS}  # fmt: skip
        with ftlog.listen("127.0.0.1", (20000, 29999)) as listener:
            address = listener.getsockname()[:2]
            sender = multiprocessing.Process(target=logspeed.send, args=("node-b", address, files["node-a"], seconds))
            sender.start()
            found = logspeed.receive(listener, "node-a", files["node-b"])
            sender.join()
    return found
