"""The standby's QEMU: it waits for its memory, takes it from us, and loads device state over it to run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from kvmft.adapters.memory import RamBlock, StandbyMemory
from kvmft.adapters.process import Process
from kvmft.adapters.qmp import SocketMonitor
from kvmft.adapters.ramblocks import discover
from kvmft.adapters.reactor import Reactor
from kvmft.core.vmstream import activation_stream, ram_section
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig
from kvmft.worker.qemu import qemu_directory

ACTIVATION_BOUND = 10.0
ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
"""QEMU's own default: when the activated VM tells the network where it is now, in milliseconds."""


class StandbyQemu:
    """A QEMU in `inmigrate`, or one that a worker before us had loaded. `on_death` is told its end."""

    def __init__(
        self, reactor: Reactor, config: WorkerConfig, on_death: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._on_death = on_death
        self._aux: list[tuple[str, str]] = []
        self.memory: StandbyMemory
        """There from `take_memory` on."""
        self.block_list: list[dict[str, str | int]] = []
        """Names and sizes (bytes) of the carried blocks, as HELLO tells them."""

    def attach(self) -> str:
        """Watch the process and open its monitor; QEMU's status."""
        config = self._config
        if config.own_monitor is None:
            raise KvmftError(
                "standby_monitor",
                "The standby has no monitor socket of ours.",
                "Let the agent start it: `kvmft enable` on the primary.",
            )
        self._directory = qemu_directory(config.run_dir, config.qemu_pid)
        Process(config.qemu_pid, self._reactor, self._on_death)
        self._monitor = SocketMonitor(self._reactor, config.own_monitor)
        status = self._status()
        if status != "inmigrate" and not config.resume:
            raise KvmftError(
                "standby_state",
                f"The standby's QEMU is {status} and not waiting for its memory.",
                "Discard the standby and let it be made again: `kvmft enable` on the primary.",
            )
        return status

    def _status(self) -> str:
        return str(self._monitor.execute("query-status")["status"])

    def hmp(self, line: str) -> str:
        """The answer of the human monitor to `line`."""
        return str(self._monitor.execute("human-monitor-command", command_line=line))

    # -- the standby's memory -----------------------------------------------------------------------

    def take_memory(self) -> None:
        """Have the memory of a QEMU in `inmigrate` in our hands."""
        # Once loaded it must not run by itself, nor tell the network that it is here: a claim
        # decides that.
        self._monitor.execute("stop")
        self._monitor.execute("migrate-set-parameters", announce_rounds=0)
        self.memory = StandbyMemory(self._config.qemu_pid, self._blocks())

    def _blocks(self) -> list[RamBlock]:
        """The carried blocks: main memory in its memfd, others in shadow files until activation."""

        result = []
        for block in discover(self.hmp, self._config.qemu_pid, standby=True):
            if block.kind == "memfd":
                result.append(block)
                continue
            path = os.path.join(self._config.run_dir, f"shadow-{len(self._aux)}")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(descriptor, block.size)
            os.close(descriptor)
            self._aux.append((block.name, path))
            result.append(RamBlock(block.name, 0, block.size, "memfd", path))
        self.block_list = [{"name": block.name, "size": block.size} for block in result]
        return result

    def _aux_section(self) -> bytes:
        contents = []
        for name, path in self._aux:
            with open(path, "rb") as file:
                contents.append((name, file.read()))
        return ram_section(contents)

    # -- activation ---------------------------------------------------------------------------------

    def load(self, state: memoryview) -> None:
        """Load device state over the memory; KvmftError when QEMU does not get to its end."""
        stream = activation_stream(state, self._config.machine, self._aux_section())
        path = os.path.join(self._directory, "incoming.sock")
        self._monitor.execute("migrate-incoming", uri=f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ACTIVATION_BOUND)
            sock.connect(path)
            sock.sendall(stream)
            sock.shutdown(socket.SHUT_WR)
            self._wait_loaded()

    def _wait_loaded(self) -> None:
        until = self._reactor.now() + ACTIVATION_BOUND
        while True:
            if self._status() != "inmigrate":
                return
            if self._reactor.now() > until:
                raise KvmftError(
                    "activation_stuck",
                    "QEMU did not load the device state in time.",
                    "See QEMU's log on this host.",
                )
            self._reactor.step(0.001)

    def run(self) -> float:
        """Let the VM run, and tell the network where it is now; the time at which it ran."""
        self._monitor.execute("cont")
        done = self._reactor.now()
        self._monitor.execute("announce-self", **ANNOUNCE)
        return done
