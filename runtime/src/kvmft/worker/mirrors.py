"""QEMU's mirrors of the VM's disks, from their start to their end: through them each write passes us first."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from kvmft.adapters.qmp import command
from kvmft.adapters.reactor import Reactor
from kvmft.worker import qemu_setup
from kvmft.worker.config import WorkerConfig
from kvmft.worker.disk_capture import DiskCapture
from kvmft.worker.qemu import Qemu
from kvmft.worker.resync import Known

MIRRORS_EVERY = 2.0
"""Seconds between looks whether QEMU still has the mirrors; that one breaks, we hear at once."""
MIRROR_REST, MIRROR_GONE = 2.0, 10.0
"""Seconds that a mirror may take to rest, and to be gone after its cancel."""
ASK_EVERY = 0.002
"""Seconds between two questions to QEMU about what it tells no event of."""


class Mirrors:
    """One mirror for each disk, into the disk capture. `on_broken` is told once when one is lost."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        qemu: Qemu,
        capture: DiskCapture,
        on_broken: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._qemu = qemu
        self._capture = capture
        self._on_broken = on_broken
        self._nodes: list[str] = []
        self._mirroring = False
        self._mirrors_due = 0.0
        self.names = [qemu_setup.job_of(disk.target) for disk in config.disks]

    def connect(self, known: Known) -> None:
        """Connect QEMU to the disk capture, for each disk. What the standby has by `known` is left out."""
        blocks = self._qemu.monitor.execute("query-block")
        owner = self._qemu.owner
        self._nodes = [qemu_setup.node_of(blocks, disk.path) for disk in self._config.disks]
        for index, disk in enumerate(self._config.disks):
            path = os.path.join(self._qemu.directory, f"nbd-{disk.target}.sock")
            lost = partial(self._mirror_lost, disk.target)
            self._capture.serve(index, path, owner, known.disks[index], lost)
            qemu_setup.add_target(self._qemu.monitor, disk.target, path)

    def start(self) -> None:
        """Begin to mirror; the VM must be stopped."""
        for disk, node in zip(self._config.disks, self._nodes, strict=True):
            speed = self._config.sync_bandwidth
            qemu_setup.start_mirror(self._qemu.monitor, disk.target, node, speed)

    def started(self) -> None:
        """The VM runs again with its mirrors: from now on it matters when one is lost."""
        self._mirroring = True

    def go_on(self, found: dict[str, dict[str, Any]]) -> bool:
        """True when QEMU has every mirror, without an error; otherwise the machine was told."""
        for disk in self._config.disks:
            status = found.get(qemu_setup.job_of(disk.target), {}).get("io-status", "gone")
            if status != "ok":
                self._mirror_lost(disk.target, f"QEMU shows its job as {status}; see QEMU's log")
                return False
        return True

    def go_on_still(self) -> bool:
        """As `go_on`, from within the epochs: QEMU is asked every MIRRORS_EVERY seconds only."""
        now = self._reactor.now()
        if now >= self._mirrors_due:
            self._mirrors_due = now + MIRRORS_EVERY
            return self.go_on(qemu_setup.jobs(self._qemu.monitor))
        return True

    def _mirror_lost(self, target: str, reason: str) -> None:
        """A disk's writes no longer reach us: no further epoch may be committed."""
        if self._mirroring:
            self._mirroring = False
            self._on_broken(f"the mirror of disk {target} broke: {reason}")

    def rest(self) -> None:
        """Pause the mirrors, as every `stop` needs it, and wait until they are at rest. One that
        cannot rest within MIRROR_REST seconds waits for the peer, and is not about to go on."""
        monitor = self._qemu.monitor
        qemu_setup.rest(monitor, qemu_setup.jobs(monitor))
        self._reactor.run_until(
            lambda: qemu_setup.at_rest(qemu_setup.jobs(monitor)), MIRROR_REST, ASK_EVERY
        )

    def present(self) -> set[str]:
        """The block jobs of ours that this QEMU has."""
        return set(self.names) & set(qemu_setup.jobs(self._qemu.monitor))

    def remove(self) -> None:
        """End the mirrors; the VM must be stopped.

        A mirror that ends while a guest's write is under way frees what that write uses next
        (QEMU 7.2, block/mirror.c: `active_write_settle` after the end of `mirror_run`), and the VM
        dies of it. `stop` waits for writes under way, and a stopped VM makes none.
        """
        monitor = self._qemu.monitor
        self._mirroring = False
        for name in self.names:
            qemu_setup.quietly(monitor, command("block-job-cancel", device=name, force=True))
        self._reactor.run_until(lambda: not self.present(), MIRROR_GONE, ASK_EVERY)
        for name in self.names:
            qemu_setup.quietly(monitor, command("blockdev-del", node_name=name))
        self._capture.close()
