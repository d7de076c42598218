"""QEMU's own COLO on this machine: two QEMUs on KVM, and the pauses that its checkpoints make."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import dirtyguest
from tests.pair.harness import free_port, wait_for

MEMORY_MIB = 128
DELAY_MS = 20
"""x-checkpoint-delay: the same interval that the engine is measured with."""


class Side:
    """A QEMU with machine type pc (q35 crashes COLO's secondary) that boots the guest from a floppy."""

    def __init__(self, folder: Path, name: str, image: Path, *more: str) -> None:
        path = folder / f"{name}.qmp"
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-M", "pc", "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none",
             "-serial", f"file:{folder / name}.serial", "-qmp", f"unix:{path},server=on,wait=off", "-S",
             "-drive", f"if=floppy,format=raw,readonly=on,file={image}", *more],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_for("QEMU's monitor", path.exists)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._file = self._sock.makefile("rb")
        self._file.readline()
        self.events: list[dict[str, Any]] = []
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run one command; its return value. Events that come meanwhile are kept."""
        line = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self._sock.sendall(json.dumps(line).encode())
        while True:
            message = json.loads(self._file.readline())
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"COLO: {command}: {message['error']['desc']}")
            else:
                return message["return"]

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def measure(pages: int, seconds: float) -> list[float]:
    """Pauses in milliseconds of a guest that dirties `pages` all the time, by the time stamps of QEMU's events."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        image = folder / "boot.img"
        partial(dirtyguest.write_disk, pages=pages, size=1440 << 10)(image)
        port = free_port()
        sides = []
        try:
            sides.append(secondary := Side(folder, "secondary", image, "-incoming", "defer"))
            sides.append(primary := Side(folder, "primary", image))
            for side in sides:
                side("migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}])
            primary("migrate-set-parameters", x_checkpoint_delay=DELAY_MS)
            secondary("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
            primary("cont")
            time.sleep(1)
            primary("migrate", uri=f"tcp:127.0.0.1:{port}")
            wait_for("COLO", lambda: primary("query-migrate").get("status") == "colo", 30)
            time.sleep(1)
            primary.events.clear()
            time.sleep(seconds)
            primary("query-status")
            return pauses(primary.events)
        finally:
            for side in sides:
                side.stop()


def pauses(events: list[dict[str, Any]]) -> list[float]:
    """Milliseconds from each STOP to the RESUME after it."""
    found, stopped = [], None
    for event in events:
        stamp = event["timestamp"]["seconds"] * 1000 + event["timestamp"]["microseconds"] / 1000
        if event["event"] == "STOP":
            stopped = stamp
        elif event["event"] == "RESUME" and stopped is not None:
            found.append(stamp - stopped)
            stopped = None
    return found
