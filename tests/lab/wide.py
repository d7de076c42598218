"""Guests with other devices: domains made to order, and the tests' hands inside them."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field

from tests.lab import net
from tests.lab.guests import IMAGES
from tests.lab.lab import ROOT, Lab

LEDGER_PORT, SHELL_PORT = 7000, 7001
SECOND_NETWORK = "10.94.0"

XML = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>6b766d66-7400-4000-8000-0000000001{number:02x}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{vcpus}</vcpu>
  {settings}
  <os{firmware}>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    {loader}
    <kernel>/opt/guests/wide/kernel</kernel>
    <initrd>/opt/guests/wide/initrd</initrd>
    <cmdline>console=ttyS0 quiet mitigations=off net.ifnames=0 {cmdline}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  {cpu}
  {clock}
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{disks}{nics}
    <serial type='file'><source path='/var/log/libvirt/qemu/{name}-serial.log' append='on'/>
    </serial>
    {devices}
  </devices>
</domain>
"""
DISK = """\
    <disk type='{kind}' device='disk'>
      <driver name='qemu' type='{format}' {options}/>
      <source {source}='{path}'/><target dev='{target}' bus='{bus}'/>
    </disk>
"""
NIC = """\
    <interface type='bridge'>
      <mac address='52:54:00:9{index}:01:{number:02x}'/><source bridge='br{index}'/>
      <model type='virtio'/><driver name='qemu'/>
    </interface>
"""
NEHALEM = "<cpu mode='custom' match='exact'><model fallback='forbid'>Nehalem</model></cpu>"
BARE = "<memballoon model='none'/><video><model type='none'/></video>"


@dataclass(frozen=True)
class WideDisk:
    """A disk: target name, format, libvirt driver options. `backing`: on top of an image of its own.
    `device`: a block device of node-a (path) instead of an image."""

    target: str
    format: str = "raw"
    options: str = "cache='none'"
    backing: bool = False
    device: str = ""
    mebibytes: int = 64

    @property
    def bus(self) -> str:
        """libvirt's bus by the target's name."""
        return "virtio" if self.target.startswith("vd") else "scsi"


@dataclass(frozen=True)
class Wide:
    """One guest. `number` makes its addresses; the first disk holds the ledger. `extra` replaces
    text in its XML (old: new)."""

    name: str
    number: int
    disks: tuple[WideDisk, ...]
    nics: int = 1
    vcpus: int = 1
    memory: int = 128
    machine: str = "q35"
    cpu: str = NEHALEM
    clock: str = ""
    settings: str = ""
    firmware: str = ""
    loader: str = ""
    devices: str = BARE
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        """The guest's address on each interface."""
        return [f"{net.NETWORKS['lan']}.{self.number}", f"{SECOND_NETWORK}.{self.number}"][: self.nics]

    def path(self, disk: WideDisk) -> str:
        """The image's path on the host where the guest is first started."""
        return disk.device or f"{IMAGES}/{self.name}-{disk.target}.{disk.format}"

    def xml(self) -> str:
        """The domain's definition."""
        cmdline = " ".join(f"kvmft.eth{i}={each}/24" for i, each in enumerate(self.addresses))
        disks = "".join(
            DISK.format(
                kind="block" if disk.device else "file", format=disk.format, options=disk.options,
                source="dev" if disk.device else "file", path=self.path(disk), target=disk.target,
                bus=disk.bus,
            )
            for disk in self.disks
        )  # fmt: skip
        if any(disk.bus == "scsi" for disk in self.disks):
            disks += "    <controller type='scsi' model='virtio-scsi'/>\n"
        xml = XML.format(
            name=self.name, number=self.number, memory=self.memory, vcpus=self.vcpus,
            settings=self.settings, firmware=self.firmware, machine=self.machine, loader=self.loader,
            cmdline=f"{cmdline} kvmft.disk=/dev/{self.disks[0].target}", cpu=self.cpu,
            clock=self.clock, disks=disks, devices=self.devices,
            nics="".join(NIC.format(index=i, number=self.number) for i in range(self.nics)),
        )  # fmt: skip
        for old, new in self.extra.items():
            xml = xml.replace(old, new)
        return xml

    def make_images(self, lab: Lab, host: str) -> None:
        """Fresh, empty images."""
        commands = [f"mkdir -p {IMAGES}"]
        for disk in self.disks:
            path, size = self.path(disk), f"{disk.mebibytes}M"
            if disk.device:
                continue
            if disk.backing:
                commands += [f"qemu-img create -q -f qcow2 {path}.base {size}",
                             f"qemu-img create -q -f qcow2 -b {path}.base -F qcow2 {path}"]  # fmt: skip
            else:
                commands.append(f"qemu-img create -q -f {disk.format} {path} {size}")
        lab.run(host, " && ".join(commands))

    def start(self, lab: Lab, host: str) -> None:
        """Define and start it, and wait until it answers."""
        self.make_images(lab, host)
        lab.run(host, f"cat > /root/{self.name}.xml <<'END'\n{self.xml()}END\n"
                f"virsh -q define /root/{self.name}.xml && virsh -q start {self.name}")  # fmt: skip
        self.wait_up(lab)

    def wait_up(self, lab: Lab, seconds: float = 150) -> None:
        """Wait until the ledger answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            probe = f"exec 3<>/dev/tcp/{self.addresses[0]}/{LEDGER_PORT}"
            command = lab.inside("timeout", "2", "bash", "-c", probe)
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.3)
        serial = lab.run("node-a", f"tail -c 2000 /var/log/libvirt/qemu/{self.name}-serial.log",
                         check=False)  # fmt: skip
        raise RuntimeError(f"guest {self.name} did not answer within {seconds} s; it said:\n{serial}")

    def shell(self, lab: Lab, command: str, timeout: float = 60) -> str:
        """Run a command in the guest's shell; what it printed."""
        program = (
            "import socket, sys\n"
            "c = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)\n"
            "c.sendall((sys.argv[3] + '\\nexit\\n').encode())\n"
            "sys.stdout.buffer.write(b''.join(iter(lambda: c.recv(65536), b'')))\n"
        )
        done = subprocess.run(
            lab.inside(sys.executable, "-c", program, self.addresses[0], str(SHELL_PORT), command),
            capture_output=True, text=True, timeout=timeout, check=True, cwd=ROOT,
        )  # fmt: skip
        return done.stdout

    def remove(self, lab: Lab, hosts: tuple[str, ...] = ("node-a", "node-b")) -> None:
        """Take it away, with its images, wherever it is."""
        for host in hosts:
            lab.run(host, f"kvmft disable {self.name}", check=False)
        for host in hosts:
            lab.run(host, f"virsh -q destroy {self.name}; "
                    f"virsh -q undefine --nvram --managed-save {self.name}; "
                    f"rm -f {IMAGES}/{self.name}-*", check=False)  # fmt: skip
        # A definition of the past was guarded as stale until it went.
        for host in hosts:
            lab.run(host, f"kvmft disable {self.name}", check=False)


def lay_second_network(lab: Lab) -> None:
    """A second bridge, br1, on both hosts, and the client's address in the second network."""
    for host in ("node-a", "node-b"):
        lab.run(host, "ip link show br1 >/dev/null 2>&1 || { "
                "ip link add br1 type bridge forward_delay 0 stp_state 0 && "
                "ip link add up1 type veth peer name down1 && ip link set up1 master br0 && "
                "ip link set down1 master br1 && ip link set up1 up && ip link set down1 up && "
                "ip link set br1 up; }")  # fmt: skip
    net.ip("addr", "add", f"{SECOND_NETWORK}.{net.CLIENT}/24", "dev", "br-lan",
           ns=f"{lab.name}-net", check=False)  # fmt: skip
