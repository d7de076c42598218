"""The protected VM's QEMU: its process, its monitor, and a directory that both of us may use."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kvmft.adapters.process import Process
from kvmft.adapters.qmp import LibvirtMonitor, Monitor, SocketMonitor
from kvmft.adapters.reactor import Reactor
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig

DEATH = 0.3
"""Seconds within which a QEMU that is dying is seen to die once something failed."""
MEMORY_FREED = 60.0
"""Seconds in which the kernel has freed the memory of a QEMU that ended; libvirt learns of its end only then."""
LIBVIRT_SAYS = 0.3
"""Seconds within which libvirt then says why it ended."""


class Qemu:
    """A running QEMU. `on_death` is told once when it ended by itself, and whether that was meant:
    its guest, or somebody who asked libvirt, powered the VM off."""

    def __init__(
        self, reactor: Reactor, config: WorkerConfig, on_death: Callable[[bool], None]
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._on_death = on_death
        self._shutdown: str | None = None
        self._vm_died = False
        self.monitor: Monitor
        """There from `attach` on."""

    def attach(self) -> None:
        """Watch the process and open its monitor."""
        config = self._config
        self.directory = qemu_directory(config.run_dir, config.qemu_pid)
        self._watch_qemu()
        if config.own_monitor:
            self.monitor = SocketMonitor(self._reactor, config.own_monitor, self._qemu_event)
        else:
            self.monitor = LibvirtMonitor(self._reactor, self._domain())

    @property
    def owner(self) -> tuple[int, int]:
        """The user and group (ids) that this QEMU runs as."""
        return qemu_owner(self._config.qemu_pid)

    def hmp(self, line: str) -> str:
        """The answer of the human monitor to `line`."""
        return str(self.monitor.execute("human-monitor-command", command_line=line))

    def ends(self) -> bool:
        """True when the process ends just now, within DEATH; its death is told then."""
        if self._process.ends_within(DEATH):
            self._qemu_died()
            return True
        return False

    def kill(self) -> None:
        """Fence through a descriptor of the very process, so that no recycled pid is hit."""
        self._vm_died = True  # by our hand: its end is nobody's loss, and is not told as one
        self._process.unwatch()
        self._process.kill()

    def wait_gone(self) -> None:
        """Return when a QEMU that ends has ended, with its sockets and locks; until then libvirt believes in the VM."""
        if self._vm_died:
            self._process.ended(MEMORY_FREED)

    def _watch_qemu(self) -> None:
        self._process = Process(self._config.qemu_pid, self._reactor, self._qemu_died)

    def _qemu_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "SHUTDOWN":
            self._shutdown = "guest" if data.get("guest") else "host"

    def _qemu_died(self) -> None:
        if self._vm_died:
            return
        self._vm_died = True
        self._process.unwatch()
        with suppress(KvmftError, OSError):  # what breaks now broke with QEMU: its death has to be told all the same
            self._reactor.step(0)  # QEMU's last event may still wait in the monitor's socket
        if self._shutdown == "guest":
            self._on_death(True)
        elif self._shutdown is None and (self._config.own_monitor or self._process.killed()):
            self._on_death(False)
        else:
            # libvirt may take its time, and heartbeats must go on: silence would be a takeover.
            def ask() -> None:
                answer = self._ended_on_purpose()
                self._reactor.call_soon_threadsafe(lambda: self._on_death(answer))

            threading.Thread(target=ask, name="libvirt", daemon=True).start()

    def _ended_on_purpose(self) -> bool:
        """True when libvirt ended the VM because somebody asked it to; a host that goes down ends
        its VMs as well, and that is what the secondary is for.

        Without a monitor of ours QEMU's events do not reach us, so libvirt is asked unless a signal ended QEMU.
        """
        import libvirt

        wanted = {libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED}
        if not self._config.own_monitor:
            wanted.add(libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
        if not self._process.ended(MEMORY_FREED):
            return False
        until = time.monotonic() + LIBVIRT_SAYS
        while time.monotonic() < until:
            try:
                state, reason = self._domain().state()
            except libvirt.libvirtError:
                return False
            if state == libvirt.VIR_DOMAIN_SHUTOFF:
                return reason in wanted and not host_goes_down()
            time.sleep(0.01)
        return False

    def _domain(self) -> Any:
        import libvirt

        return libvirt.open("qemu:///system").lookupByUUIDString(self._config.uuid)


def qemu_directory(run_dir: str, pid: int) -> str:
    """A directory in `run_dir` where QEMU process `pid` may make and open files; its path."""
    path = os.path.join(run_dir, "qemu")
    os.makedirs(path, mode=0o700, exist_ok=True)
    for above in (os.path.dirname(run_dir), run_dir):
        os.chmod(above, 0o711)  # whatever the umask: QEMU's user must get through, not look around
    os.chown(path, *qemu_owner(pid))
    return path


def qemu_owner(pid: int) -> tuple[int, int]:
    """The user and group (ids) that QEMU process `pid` runs as."""
    status = os.stat(f"/proc/{pid}")
    try:
        return status.st_uid, pwd.getpwuid(status.st_uid).pw_gid
    except KeyError:
        return status.st_uid, status.st_gid


def host_goes_down() -> bool:
    """True while systemd shuts this host down."""
    try:
        done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True,
                              check=False, timeout=1)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"
