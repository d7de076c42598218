"""Worker processes: started with one end of a socketpair, spoken to in JSON lines."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

from kvmft.agent.lines import MAX_LINE


class WorkerProcess:
    """One worker, a process of Python's `module`. `on_message` gets each of its messages; `on_exit` is
    called once, at its end."""

    def __init__(
        self,
        on_message: Callable[[dict[str, Any]], None],
        on_exit: Callable[[], None],
        module: str = "kvmft.worker",
    ) -> None:
        self._module = module
        self._on_message = on_message
        self._on_exit = on_exit
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, config: dict[str, Any]) -> None:
        """Start the process and give it its start line."""
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        self.send(**config)
        self._task = asyncio.create_task(self._read(reader))

    def send(self, **message: Any) -> None:
        """Send one command; one to a worker that ended is dropped."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._on_message(json.loads(line))
        except (OSError, ValueError):
            pass
        assert self._process is not None
        await self._process.wait()
        if self._writer is not None:
            self._writer.close()
        self._on_exit()

    async def end(self, seconds: float = 5.0) -> None:
        """Wait for the process to end by itself, then kill it."""
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._task is not None:
            await self._task
