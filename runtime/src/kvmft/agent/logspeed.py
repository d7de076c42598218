"""The agent's part in measuring the FT log between two hosts: a process on each side, started for it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from kvmft.agent.config import Config
from kvmft.agent.lines import error_of
from kvmft.agent.peers import Peers
from kvmft.errors import KvmftError

MOST = 30.0
"""Seconds that may be asked for: the measurement takes the network that commits need, too."""
READY = 10.0


class LogSpeed:
    """One measurement at a time on a host, whichever side it is."""

    def __init__(self, config: Config, peers: Peers) -> None:
        self._config = config
        self._peers = peers
        self._busy = False

    async def measure(self, args: dict[str, Any]) -> dict[str, Any]:
        """Send to host `peer` for so many `seconds`; the bytes a second that arrived there."""
        peer, seconds = str(args.get("peer") or ""), _seconds(args)
        self._begin()
        try:
            answer = await self._peers.call(peer, "peer_log_speed", seconds=seconds)
            process = await self._start("send", peer, seconds, address=self._config.peers[peer]["ft"],
                                        port=int(answer["port"]))  # fmt: skip
            found = await self._line(process, seconds + 3 * READY)
            await process.communicate()
            return {"bytes_s": found["bytes_s"], "seconds": seconds, "peer": peer}
        finally:
            self._busy = False

    async def receive(self, caller: str, args: dict[str, Any]) -> int:
        """Take what agent `caller`'s host is about to send; the port at which it is awaited."""
        seconds = _seconds(args)
        self._begin()
        try:
            process = await self._start("receive", caller, seconds, address=self._config.addresses["ft"],
                                        ports=list(self._config.ft_log_ports))  # fmt: skip
            port = int((await self._line(process, READY))["port"])
        except BaseException:
            self._busy = False
            raise
        self._ending = asyncio.create_task(self._until_end(process))
        return port

    async def _until_end(self, process: asyncio.subprocess.Process) -> None:
        try:
            await process.communicate()  # it ends by itself: an alarm is set
        finally:
            self._busy = False

    def _begin(self) -> None:
        if self._busy:
            raise KvmftError("busy", f"{self._config.host} is measuring the FT log already.",
                             "Measure again in a minute.")  # fmt: skip
        self._busy = True

    async def _start(self, role: str, peer: str, seconds: float, **more: Any) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kvmft.report.logspeed",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        tls = self._config.tls
        orders = {"role": role, "peer": peer, "seconds": seconds,
                  "tls": {"ca": tls.ca, "cert": tls.cert, "key": tls.key}, **more}  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(orders).encode() + b"\n")
        process.stdin.close()
        return process

    async def _line(self, process: asyncio.subprocess.Process, seconds: float) -> dict[str, Any]:
        """The next line of figures; KvmftError, and no process, when there is none."""
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), seconds)
            found: dict[str, Any] = json.loads(line)
        except (TimeoutError, ValueError):
            found = {"error": {"code": "log_speed_failed", "message": "The process that measures gave no figure.",
                               "remedy": "See `journalctl -u kvmft-agent`."}}  # fmt: skip
        if "error" in found:
            if process.returncode is None:
                process.kill()
            await process.communicate()
            raise error_of(found["error"])
        return found


def _seconds(args: dict[str, Any]) -> float:
    seconds = args.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= MOST:
        raise KvmftError("bad_request", f"The FT log cannot be measured for {seconds!r} seconds.",
                         f"Give a number up to {MOST:.0f}.")  # fmt: skip
    return float(seconds)
