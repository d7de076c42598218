"""Servers as system containers: made, powered on and off, reached over SSH, and taken away again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab import images, net

ROOT = Path(__file__).parents[2]
SYSCALLS = (
    "@privileged userfaultfd ptrace process_vm_readv process_vm_writev pidfd_getfd pidfd_open bpf "
    "keyctl add_key"
)
BOOT_SECONDS = 60


class Lab:
    """One lab; several of different names can be up side by side."""

    def __init__(
        self, name: str | None = None, release: str | None = None, servers: int = 2,
        other: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`release` is the servers' Debian: by default what this lab was made with, or else what
        KVMFT_RELEASE says, or else 12. `other` gives it for single servers that differ."""
        self.other = dict(other or {})
        self.servers = ("node-a", "node-b", "node-c")[:servers]
        self.hosts = (*self.servers, "witness")
        self.name = name or os.environ.get("KVMFT_LAB", "kvmft")
        self.base = Path("/var/lib/kvmft-lab") / self.name
        marker = self.base / "release"
        made_with = marker.read_text() if marker.exists() else None
        self.release = release or made_with or os.environ.get("KVMFT_RELEASE") or "12"
        self.build = ROOT / "build" / "lab" / self.name
        self.key = self.build / "id_ed25519"
        self.inventory = self.build / "inventory.yml"
        self.masters = Path("/run/kvmft-lab") / self.name
        """Sockets of the SSH connections that Ansible keeps open."""

    # -- the whole ----------------------------------------------------------------------------------

    def up(self) -> None:
        """Make what is not there yet, and boot what is off."""
        roots = {host: images.server_root(self.other.get(host, self.release)) for host in self.hosts}
        guests = {"postgres": images.postgres_guest(), "quick": images.quick_guest(),
                  "wide": images.wide_guest()}  # fmt: skip
        self.build.mkdir(parents=True, exist_ok=True)
        marker = self.base / "release"
        if marker.exists() and marker.read_text() != self.release:
            self.down()
        self.base.mkdir(parents=True, exist_ok=True)
        marker.write_text(self.release)
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)],
                           check=True)  # fmt: skip
        if f"{self.name}-net" not in net.namespaces():
            net.make_bridges(self.name)
        for host in self.hosts:
            if not self.is_on(host):
                self._prepare(host, roots[host], guests)
                self.power_on(host, wait=False)
        for host in self.hosts:
            self.wait_ssh(host)
        self._write_inventory()

    def down(self) -> None:
        """Take everything away."""
        for socket in self.masters.glob("*"):
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "lab"], check=False,
                           capture_output=True)  # fmt: skip
        for host in net.HOSTS:
            self._kill(host)
        if f"{self.name}-net" in net.namespaces():
            for host in net.HOSTS:
                net.unplug(self.name, host)
            net.ip("netns", "del", f"{self.name}-net", check=False)
        for host in net.HOSTS:
            net.ip("netns", "del", f"{self.name}-{host}", check=False)
            subprocess.run(["umount", "-q", str(self.base / host / "root")], check=False,
                           stderr=subprocess.DEVNULL)  # fmt: skip
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in reversed([each for each in mounted if each.startswith(f"{self.base}/")]):
            subprocess.run(["umount", "-l", path], check=False)
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.rmtree(self.build, ignore_errors=True)
        shutil.rmtree(self.masters, ignore_errors=True)
        for host in net.HOSTS:
            # systemd-nspawn that was killed leaves its (empty) folder of propagated mounts.
            with contextlib.suppress(OSError):
                Path(f"/run/systemd/nspawn/propagate/{self.name}-{host}").rmdir()
        with contextlib.suppress(OSError):
            self.base.parent.rmdir()

    def status(self) -> dict[str, str]:
        """`on` or `off` per server."""
        return {host: "on" if self.is_on(host) else "off" for host in self.hosts}

    # -- one server ---------------------------------------------------------------------------------

    def _prepare(self, host: str, root: Path, guests: dict[str, Path]) -> None:
        home = self.base / host
        for name in ("upper", "work", "root", "kvmft"):
            (home / name).mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(home / "root"):
            options = f"lowerdir={root},upperdir={home}/upper,workdir={home}/work"
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(home / "root")],
                           check=True)  # fmt: skip
        target = home / "root"
        (target / "etc/hostname").write_text(f"{host}\n")
        lines = ["127.0.0.1 localhost"]
        lines += [f"{net.NETWORKS['mgmt']}.{last} {name}" for name, last in net.HOSTS.items()]
        (target / "etc/hosts").write_text("\n".join(lines) + "\n")
        authorized = target / "root/.ssh/authorized_keys"
        authorized.write_text(self.key.with_suffix(".pub").read_text())
        authorized.chmod(0o600)
        (target / "etc/machine-id").write_text("")
        for path in ("var/lib/kvmft", *(f"opt/guests/{name}" for name in guests)):
            (target / path).mkdir(parents=True, exist_ok=True)

    def power_on(self, host: str, wait: bool = True) -> None:
        """Plug the cables in and boot."""
        home = self.base / host
        guests = [f"--bind-ro={images.postgres_guest()}:/opt/guests/postgres",
                  f"--bind-ro={images.quick_guest()}:/opt/guests/quick",
                  f"--bind-ro={images.wide_guest()}:/opt/guests/wide"]  # fmt: skip
        command = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot",
            f"--directory={home / 'root'}", f"--machine={self.name}-{host}",
            f"--hostname={host}",
            "--private-network", "--capability=all",
            f"--system-call-filter={SYSCALLS}", "--resolv-conf=off", "--timezone=off",
            "--link-journal=no", "--kill-signal=SIGRTMIN+3",
            f"--bind={home / 'kvmft'}:/var/lib/kvmft", *guests, *device_options(home),
            "--console=pipe",
        ]  # fmt: skip
        with (self.build / f"{host}.console").open("ab") as console:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console,
                                       stderr=console, start_new_session=True,
                                       preexec_fn=lambda: self._enter_cgroup(host))  # fmt: skip
        (home / "pid").write_text(str(process.pid))
        until = time.monotonic() + BOOT_SECONDS
        while (leader := self.leader(host)) is None or not _has_own_network(leader):
            if process.poll() is not None or time.monotonic() > until:
                console = (self.build / f"{host}.console").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{host} does not start:\n{console}")
            time.sleep(0.02)
        net.unplug(self.name, host)
        net.plug_in(self.name, host, leader)
        if wait:
            self.wait_ssh(host)

    def cgroups(self, host: str) -> list[Path]:
        """The server's own control groups: without them all containers would share one tree, and
        one's systemd would see the others' processes in its services."""
        top = Path("/sys/fs/cgroup")
        trees = [top] if (top / "cgroup.controllers").exists() else [top / "systemd", top / "unified"]
        return [tree / "kvmft-lab" / self.name / host for tree in trees if tree.is_dir()]

    def _enter_cgroup(self, host: str) -> None:
        for group in self.cgroups(host):
            group.mkdir(parents=True, exist_ok=True)
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def _leave_cgroup(self, host: str) -> None:
        for group in self.cgroups(host):
            for path, __, __ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            for above in (group.parent, group.parent.parent):
                with contextlib.suppress(OSError):
                    above.rmdir()

    def power_off(self, host: str) -> float:
        """A power cut: the cables go dead, then every process is killed at once.

        Returns the time (CLOCK_MONOTONIC, seconds) at which the cables went dead.
        """
        for network in net.NETWORKS:
            net.cable(self.name, host, network, up=False)
        when = time.monotonic()
        self._kill(host)
        net.unplug(self.name, host)
        return when

    def is_on(self, host: str) -> bool:
        """True while the server's container runs."""
        return self.leader(host) is not None

    def _nspawn(self, host: str) -> int | None:
        try:
            pid = int((self.base / host / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if f"--machine={self.name}-{host}".encode() in command else None

    def leader(self, host: str) -> int | None:
        """The container's PID 1, as this machine numbers it."""
        pid = self._nspawn(host)
        if pid is None:
            return None
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        for child in children:
            return int(child)
        return None

    def _kill(self, host: str) -> None:
        """Killing PID 1 of a PID namespace kills everything in it at once (pid_namespaces(7))."""
        outer, leader = self._nspawn(host), self.leader(host)
        for pid in (leader, outer):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while outer is not None and os.path.exists(f"/proc/{outer}") and time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(outer, os.WNOHANG)
            if _is_zombie(outer):
                break
            time.sleep(0.02)
        (self.base / host / "pid").unlink(missing_ok=True)
        self._leave_cgroup(host)

    # -- reaching it --------------------------------------------------------------------------------

    def address(self, host: str, network: str = "mgmt") -> str:
        """A server's address."""
        return f"{net.NETWORKS[network]}.{net.HOSTS[host]}"

    def inside(self, *command: str) -> list[str]:
        """`command`, run in the lab's network (where the outside client is)."""
        return ["ip", "netns", "exec", f"{self.name}-net", *command]

    def ansible_environment(self) -> dict[str, str]:
        """Environment in which Ansible finds this checkout as the collection kvmft.core."""
        link = ROOT / "build/collections/ansible_collections/kvmft/core"
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(ROOT)
        return {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"),
            "ANSIBLE_HOST_KEY_CHECKING": "false",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_FORKS": "6",
            "ANSIBLE_HOME": str(ROOT / "build/ansible"),
        }

    def playbook_command(self, *arguments: str) -> list[str]:
        """`ansible-playbook` against this lab; run it in `ansible_environment()`."""
        program = str(Path(sys.executable).parent / "ansible-playbook")
        return self.inside(program, "-i", str(self.inventory), *arguments)

    def playbook(self, *arguments: str, timeout: float = 900) -> str:
        """Run a playbook; its output. Raises RuntimeError with the output when it fails."""
        done = subprocess.run(self.playbook_command(*arguments), env=self.ansible_environment(),
                              cwd=ROOT, capture_output=True, text=True, timeout=timeout,
                              check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"playbook {' '.join(arguments)} failed:\n{done.stdout[-4000:]}"
                               f"{done.stderr[-2000:]}")  # fmt: skip
        return done.stdout

    def ssh_command(self, host: str) -> list[str]:
        """The ssh command line to a server."""
        return self.inside(
            "ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5",
            "-o", "BatchMode=yes", f"root@{self.address(host)}",
        )  # fmt: skip

    def run(self, host: str, command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command on a server; its standard output."""
        done = subprocess.run([*self.ssh_command(host), command], capture_output=True, text=True,
                              timeout=timeout, check=False)  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{host}: {command}: exit {done.returncode}: {done.stdout[-2000:]}"
                               f"{done.stderr[-2000:]}")  # fmt: skip
        return done.stdout

    def wait_ssh(self, host: str) -> None:
        """Wait until the server has booted."""
        until = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.run(host, "true", timeout=10)
                return
            time.sleep(0.3)
        console = (self.build / f"{host}.console").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{host} did not boot within {BOOT_SECONDS} s:\n{console}")

    def _write_inventory(self) -> None:
        import yaml

        def host(name: str) -> dict[str, Any]:
            return {
                "ansible_host": self.address(name),
                "kvmft_management_address": self.address(name),
                "kvmft_management_interface": "mgmt0",
                "kvmft_ft_address": self.address(name, "ft"),
                "kvmft_ft_interface": "ft0",
                "kvmft_migration_address": self.address(name, "mig"),
                "kvmft_migration_interface": "mig0",
            }

        value = {
            "all": {
                "vars": {
                    "ansible_user": "root",
                    # Labs of other checkouts build theirs at the same time.
                    "kvmft_runtime_build_dir": str(ROOT / "build" / "wheel"),
                    "ansible_ssh_private_key_file": str(self.key),
                    "ansible_ssh_common_args": "-o StrictHostKeyChecking=no "
                    "-o UserKnownHostsFile=/dev/null",
                    "ansible_python_interpreter": "/usr/bin/python3",
                    # Labs have the same addresses: a shared SSH master would lead to another lab.
                    "ansible_control_path_dir": str(self.masters),
                    "kvmft_pki_dir": str(self.build / "pki"),
                    # libvirt in a container has no cgroup tree of its own
                    "kvmft_hypervisor_cgroup_controllers": [],
                    # two cores carry two servers and an emulated guest here
                    "kvmft_agent_options": {"detection_ms": 500},
                },
                "children": {
                    "kvmft_hosts": {"hosts": {name: host(name) for name in self.servers}},
                    "kvmft_arbiter": {"hosts": {"witness": host("witness")}},
                },
            }
        }
        self.inventory.write_text(yaml.safe_dump(value, sort_keys=False))


def _has_own_network(pid: int) -> bool:
    """True once `pid` is the container's PID 1 and has left this machine's network.

    systemd-nspawn forks twice; its first child is there for a moment only.
    """
    try:
        numbers = re.search(r"^NSpid:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        network = os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return False
    is_first = numbers is not None and numbers[1].split()[-1] == "1"
    return is_first and network != os.readlink("/proc/self/ns/net")


def device_options(home: Path) -> list[str]:
    """systemd-nspawn's options for the devices that hypervisors use; `home` keeps the node."""
    options = [f"--bind={path}" for path in ("/dev/net/tun", "/dev/vhost-net")
               if os.path.exists(path)]  # fmt: skip
    if os.path.exists("/dev/kvm"):
        options.append(f"--bind={_kvm_node(home)}:/dev/kvm")
    return options


def _kvm_node(home: Path) -> Path:
    """A /dev/kvm of the server's own, which QEMU's user may open as on any Debian.

    Where root alone may, libvirt finds KVM and then not, and probes QEMU anew at every call (15 s).
    """
    node = home / "dev-kvm"
    if not node.exists():
        os.mknod(node, 0o666 | stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
        node.chmod(0o666)
    return node


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
