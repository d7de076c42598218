"""This host's libvirt and files. Blocking; the agent calls it through `asyncio.to_thread`."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmft.agent.facts import gather, request_of
from kvmft.core.admission import Request, lacking
from kvmft.core.domain import Domain, describe, hardware, with_cpu_of
from kvmft.core.qemu_version import older_process
from kvmft.core.standby import persistent_xml, standby_xml
from kvmft.errors import KvmftError

QMP_DIRECTORY = "/run/kvmft/qmp"
TOKEN_DIRECTORY = "/run/kvmft/starting"
RUN_DIRECTORY = "/run/kvmft/vm"
BOOT_MARK = "/run/kvmft/boot"
NOTHING_SAID = Request()


@dataclass(frozen=True)
class Found:
    """A domain as libvirt has it now. `xml` is what another host can start it from; `live` shows a
    running one with everything that libvirt chose for it."""

    domain: Domain
    xml: str
    live: str
    running: bool
    pid: int
    snapshots: int


class Host:
    """libvirt on this host."""

    def __init__(self) -> None:
        self._connection: Any = None

    def _libvirt(self) -> Any:
        import libvirt

        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        if self._connection is None or not self._connection.isAlive():
            try:
                self._connection = libvirt.open("qemu:///system")
            except libvirt.libvirtError as error:
                raise KvmftError("libvirt_down", f"libvirt does not answer: {error}.",
                                 "Start it: systemctl start libvirtd.") from error  # fmt: skip
        return self._connection

    def _lookup(self, vm: str) -> Any:
        import libvirt

        try:
            return self._libvirt().lookupByName(vm)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise KvmftError("vm_not_found", f"VM {vm} does not exist on this host.",
                                 "See `virsh list --all` for the names.") from error  # fmt: skip
            raise KvmftError("libvirt_down", f"libvirt does not answer about VM {vm}: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip

    def domain(self, vm: str) -> Any:
        """libvirt's own object for the domain."""
        return self._lookup(vm)

    def find(self, vm: str) -> Found:
        """The domain named `vm`; KvmftError `vm_not_found`."""
        import libvirt

        found = self._lookup(vm)
        running = bool(found.isActive())
        flags = libvirt.VIR_DOMAIN_XML_SECURE
        if running:
            flags |= libvirt.VIR_DOMAIN_XML_MIGRATABLE
        xml = found.XMLDesc(flags)
        live = found.XMLDesc(0) if running else xml
        if running:
            # Of the CPU, what QEMU gave the guest counts, not what it was asked for.
            xml = with_cpu_of(xml, live)
        pid = self._pid(vm) if running else 0
        return Found(describe(live), xml, live, running, pid, found.snapshotNum())

    def hardware(self, vm: str) -> frozenset[str]:
        """The devices of the running VM, as `core.domain.hardware` lists them; none when it is off."""
        import libvirt

        try:
            found = self._lookup(vm)
            xml = found.XMLDesc(0)
            # Asked after: a VM that ended meanwhile shows its definition, which is something else.
            return hardware(xml) if found.isActive() else frozenset()
        except libvirt.libvirtError as error:
            raise KvmftError("libvirt_down", f"libvirt does not answer about VM {vm}: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip

    def blockers(self, vm: str) -> list[KvmftError]:
        """What the QEMU of a running VM says that it cannot move (QMP query-migrate)."""
        import libvirt
        import libvirt_qemu

        try:
            answer = libvirt_qemu.qemuMonitorCommand(
                self._lookup(vm), '{"execute":"query-migrate"}', 0
            )
        except libvirt.libvirtError as error:
            raise KvmftError("libvirt_down", f"libvirt does not answer about VM {vm}: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip
        return [
            KvmftError("migration_blocked", f"VM {vm}: QEMU cannot move it: {reason}.",
                       "Remove the device or feature that QEMU names.")
            for reason in json.loads(answer)["return"].get("blocked-reasons", [])
        ]  # fmt: skip

    def names(self) -> list[str]:
        """All domains that libvirt knows."""
        return [found.name() for found in self._libvirt().listAllDomains()]

    @staticmethod
    def _pid(vm: str) -> int:
        try:
            with open(f"/run/libvirt/qemu/{vm}.pid", encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError) as error:
            raise KvmftError("vm_not_running", f"The QEMU process of VM {vm} is not found: {error}.",
                             "Start the VM.") from error  # fmt: skip

    def is_running(self, vm: str) -> bool:
        """True when libvirt shows the domain as active.

        KvmftError `libvirt_down` when libvirt does not answer: that is no proof that it is off.
        """
        import libvirt

        try:
            return bool(self._lookup(vm).isActive())
        except KvmftError as error:
            if error.code != "vm_not_found":
                raise
            return False
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise KvmftError("libvirt_down", f"libvirt does not answer about VM {vm}: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip

    def execution(self, vm: str) -> str:
        """`running` (its vCPUs run), `paused` (also: waits for its memory) or `off`.

        KvmftError `libvirt_down` when libvirt does not answer.
        """
        import libvirt

        try:
            state = self._lookup(vm).state()[0]
        except KvmftError as error:
            if error.code != "vm_not_found":
                raise
            return "off"
        except libvirt.libvirtError as error:
            raise KvmftError("libvirt_down", f"libvirt does not answer about VM {vm}: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip
        if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
            return "running"
        return "paused" if state == libvirt.VIR_DOMAIN_PAUSED else "off"

    def is_defined(self, vm: str) -> bool:
        """True when libvirt could start a domain of this name from its own definition."""
        try:
            return bool(self._lookup(vm).isPersistent())
        except KvmftError as error:
            if error.code != "vm_not_found":
                raise
            return False

    def disk_sizes(self, vm: str, domain: Domain) -> list[dict[str, Any]]:
        """Target, path and virtual size (bytes) of each writable disk of a running VM."""
        found = self._lookup(vm)
        return [
            {"target": disk.target, "path": disk.path, "size": found.blockInfo(disk.target)[0],
             "format": disk.format, "kind": disk.kind}
            for disk in domain.disks
        ]  # fmt: skip

    def set_autostart(self, vm: str, on: bool) -> bool:
        """Set the domain's autostart; what it was before. False for one without definition."""
        import libvirt

        found = self._lookup(vm)
        if not found.isPersistent():
            return False
        before = bool(found.autostart())
        if before != on:
            try:
                found.setAutostart(int(on))
            except libvirt.libvirtError as error:
                raise KvmftError("autostart", f"Autostart of VM {vm} cannot be set: {error}.",
                                 "See libvirtd's log.") from error  # fmt: skip
        return before

    def versions(self) -> dict[str, str]:
        """QEMU's and libvirt's versions."""
        connection = self._libvirt()

        def text(number: int) -> str:
            return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

        return {"qemu": text(connection.getVersion()), "libvirt": text(connection.getLibVersion())}

    def qemu_of(self, found: Found) -> str:
        """The QEMU version that a standby of this VM needs: the installed one.

        KvmftError `qemu_version` when the VM still runs in one of another release.
        """
        import libvirt
        import libvirt_qemu  # of Debian's python3-libvirt, like libvirt

        installed = self.versions()["qemu"]
        if not found.running:
            return installed
        name = found.domain.name
        try:
            answer = libvirt_qemu.qemuMonitorCommand(
                self._lookup(name), '{"execute": "query-version"}', 0
            )
        except libvirt.libvirtError as error:
            raise KvmftError("libvirt_down", f"libvirt does not answer about VM {name}: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip
        version = json.loads(answer)["return"]["qemu"]
        running = f"{version['major']}.{version['minor']}.{version['micro']}"
        for reason in older_process(name, running, installed):
            raise reason
        return installed

    @staticmethod
    def clear_tokens() -> None:
        """Remove the start tokens that an agent left which was killed while it started a standby."""
        if os.path.isdir(TOKEN_DIRECTORY):
            for name in os.listdir(TOKEN_DIRECTORY):
                os.unlink(os.path.join(TOKEN_DIRECTORY, name))

    # -- the standby --------------------------------------------------------------------------------

    def admit(
        self,
        domain: Domain,
        disks: list[dict[str, Any]],
        pool: str,
        ours: Callable[[str], bool] = lambda _path: False,
        request: Request = NOTHING_SAID,
    ) -> list[KvmftError]:
        """Everything this host lacks for the standby, with need and have.

        `ours` says of an image file that it is a replica of this VM and may be overwritten;
        `request` is what the primary told of itself.
        """
        connection = self._libvirt()
        known = self._defined_paths(domain.uuid)
        replicas = [
            (str(disk["target"]), replica_path(disk, domain.name, pool), int(disk["size"]))
            for disk in disks
        ]
        return lacking(domain, request, gather(
            connection, domain, request, replicas, lambda path: ours(path) or path in known,
            available_memory()))  # fmt: skip

    def request(self, domain: Domain) -> Request:
        """What another host must know besides the XML to say whether it can take the standby."""
        return request_of(self._libvirt(), domain)

    def _defined_paths(self, uuid: str) -> set[str]:
        """The images of this host's own definition of the VM, which ran here once."""
        import libvirt

        try:
            found = self._libvirt().lookupByUUIDString(uuid)
            return {disk.path for disk in describe(found.XMLDesc(0)).disks}
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return set()
            raise KvmftError("libvirt_down", f"libvirt does not answer: {error}.",
                             "See `systemctl status libvirtd`.") from error  # fmt: skip

    def start_standby(
        self, xml: str, domain: Domain, disks: list[dict[str, Any]], pool: str, session: str
    ) -> tuple[int, str, list[dict[str, Any]]]:
        """Create the replica's images and a paused QEMU that waits; (pid, monitor path, disks)."""
        import libvirt

        local = []
        for disk in disks:
            path = replica_path(disk, domain.name, pool)
            with open(path, "ab") as file:
                file.truncate(int(disk["size"]))
            local.append({"target": disk["target"], "path": path, "size": int(disk["size"])})
        os.makedirs(QMP_DIRECTORY, exist_ok=True)
        _give_to_qemu(QMP_DIRECTORY)
        os.makedirs(os.path.join(RUN_DIRECTORY, domain.name), exist_ok=True)
        monitor = f"{domain.name}-{session[:8]}.sock"
        paths = {disk["target"]: disk["path"] for disk in local}
        os.makedirs(TOKEN_DIRECTORY, mode=0o700, exist_ok=True)
        token = os.path.join(TOKEN_DIRECTORY, domain.name)
        try:
            with open(token, "w", encoding="ascii") as file:
                file.write(session)
            self._libvirt().createXML(
                standby_xml(xml, monitor, paths), libvirt.VIR_DOMAIN_START_PAUSED
            )
        except libvirt.libvirtError as error:
            raise KvmftError("standby_start", f"The standby does not start: {error}.",
                             "See /var/log/libvirt/qemu on the secondary.") from error  # fmt: skip
        finally:
            os.unlink(token)
        return self._pid(domain.name), os.path.join(QMP_DIRECTORY, monitor), local

    def kill(self, vm: str) -> None:
        """Kill the QEMU of `vm`, as a crash would end it."""
        os.kill(self._pid(vm), signal.SIGKILL)

    def destroy(self, vm: str) -> None:
        """Make sure that no QEMU of `vm` runs here; KvmftError when that is not certain."""
        import libvirt

        try:
            found = self._lookup(vm)
            if found.isActive():
                found.destroy()
        except KvmftError as error:
            if error.code != "vm_not_found":
                raise
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (
                libvirt.VIR_ERR_OPERATION_INVALID,
                libvirt.VIR_ERR_NO_DOMAIN,
            ):
                raise KvmftError("destroy", f"VM {vm} cannot be stopped here: {error}.",
                                 f"Stop it by hand: virsh destroy {vm}.") from error  # fmt: skip

    def start(self, vm: str) -> None:
        """Start a defined VM from its disk."""
        import libvirt

        try:
            self._lookup(vm).create()
        except libvirt.libvirtError as error:
            raise KvmftError("start", f"VM {vm} does not start: {error}.",
                             "See /var/log/libvirt/qemu on this host.") from error  # fmt: skip

    def definition(self, vm: str) -> str:
        """The domain XML that keeps a standby, once it runs, as an ordinary domain."""
        import libvirt

        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        return persistent_xml(self._lookup(vm).XMLDesc(flags))

    def define(self, xml: str) -> None:
        """Have libvirt keep a domain."""
        import libvirt

        try:
            self._libvirt().defineXML(xml)
        except libvirt.libvirtError as error:
            raise KvmftError("define", f"libvirt does not keep the VM: {error}.",
                             "See libvirtd's log.") from error  # fmt: skip

    def define_activated(self, vm: str) -> None:
        """Keep the activated standby as an ordinary, defined domain."""
        self.define(self.definition(vm))

    def crashed(self, vm: str) -> bool:
        """True when libvirt says of a VM that is off that its QEMU ended without being asked to."""
        import libvirt

        try:
            state, reason = self._lookup(vm).state()
        except (KvmftError, libvirt.libvirtError):
            return False
        failed = (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)
        return state == libvirt.VIR_DOMAIN_SHUTOFF and reason in failed


def replica_path(disk: dict[str, Any], vm: str, pool: str) -> str:
    """Where the replica's image lies: the same path as on the primary if its folder is here.

    A replica is raw: beside an image of another format it gets a name of its own, so that nobody
    opens one as the other. For a block device it is a file in the pool: no device is overwritten.
    """
    path = str(disk["path"])
    if disk.get("kind") == "block" or not os.path.isdir(os.path.dirname(path)):
        return os.path.join(pool, f"{vm}-{disk['target']}.raw")
    return path if disk.get("format", "raw") == "raw" else f"{path}.raw"


def boot_id(path: str = BOOT_MARK) -> str:
    """A name of this boot, kept where only a restart of the host removes it.

    The kernel's own boot id would do on a server; a container shares it with its host.
    """
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        made = secrets.token_hex(8)
        with open(path, "w", encoding="ascii") as file:
            file.write(made)
        return made


def available_memory() -> int:
    """Bytes of memory that new processes can use (MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def _give_to_qemu(directory: str) -> None:
    """QEMU's user makes its monitor socket there."""
    import grp
    import pwd

    for name in ("libvirt-qemu", "qemu"):
        try:
            os.chown(directory, pwd.getpwnam(name).pw_uid, grp.getgrnam("root").gr_gid)
        except KeyError:
            continue
        os.chmod(directory, 0o750)
        return
