"""`python -m kvmft.worker`: started by the agent with one end of a socketpair as fd 3."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import traceback
from typing import Any

from kvmft.adapters.reactor import Reactor
from kvmft.errors import KvmftError
from kvmft.worker.claimant import ClaimWorker
from kvmft.worker.config import WorkerConfig, parse
from kvmft.worker.link import AgentLink, die_with_agent
from kvmft.worker.primary import PrimaryWorker
from kvmft.worker.secondary import SecondaryWorker

DEFAULT_AGENT_FD = 3
LAST = 10
"""Niceness of a worker that has done its work."""
WORKERS: dict[str, type[PrimaryWorker | SecondaryWorker | ClaimWorker]] = {
    "primary": PrimaryWorker,
    "secondary": SecondaryWorker,
    "claim": ClaimWorker,
}


def _first_line(sock: socket.socket) -> dict[str, object]:
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            raise SystemExit("the agent closed the line before the start line")
        data += piece
    line: dict[str, object] = json.loads(data)
    return line


def _run(
    reactor: Reactor, worker: PrimaryWorker | SecondaryWorker | ClaimWorker
) -> None:
    """Until the worker is done. A step of the primary's that fails is told to its machine, which then
    leaves the pair in order: often it is QEMU that died under it. The second time it is given up."""
    try:
        reactor.run()
    except (KvmftError, OSError) as error:
        if not isinstance(worker, PrimaryWorker):
            raise
        worker.step_failed(str(error))
        reactor.run()


def main() -> int:
    """Run one worker until it is done; the exit code is 0 also for a failover that was lost."""
    die_with_agent()
    sock = socket.socket(fileno=int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_AGENT_FD)
    reactor = Reactor()
    worker: PrimaryWorker | SecondaryWorker | ClaimWorker | None = None

    def gone() -> None:
        reactor.stop()

    attached = False
    early: list[dict[str, Any]] = []
    """Commands that came before the worker had attached to QEMU."""

    def command(line: dict[str, Any]) -> None:
        if attached and worker is not None:
            worker.command(line)
        else:
            early.append(line)

    line = _first_line(sock)
    link = AgentLink(reactor, sock, command, gone)
    try:
        config: WorkerConfig = parse(line)
        worker = WORKERS[config.role](reactor, config, link)
        worker.start()
        attached = True
        for each in early:
            worker.command(each)
        # The collector's pauses would fall into the VM's; the hot path makes no cycles.
        gc.collect()
        gc.freeze()
        gc.disable()
        _run(reactor, worker)
        # What is left is to give memory back, half a second for 4 GiB: not before a VM that has just begun to run here.
        os.nice(LAST)
    except KvmftError as error:
        link.event("failed", str(error))
        link.send(msg="done", outcome="failed", reason=str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        link.event("failed", f"the worker broke: {error!r}")
        link.send(msg="done", outcome="failed", reason=f"the worker broke: {error!r}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
