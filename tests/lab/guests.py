"""The lab's guests as libvirt domains."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.lab.lab import Lab

IMAGES = "/var/lib/kvmft/images"

XML = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/opt/guests/{kind}/kernel</kernel>
    <initrd>/opt/guests/{kind}/initrd</initrd>
    <cmdline>console=ttyS0 quiet mitigations=off {cmdline}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>Nehalem</model></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{images}/{name}.raw'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='{mac}'/><source bridge='br0'/><model type='virtio'/><driver name='qemu'/>
    </interface>
    <serial type='file'><source path='/var/log/libvirt/qemu/{name}-serial.log' append='on'/>
    </serial>
    <memballoon model='none'/><video><model type='none'/></video>
  </devices>{extra}
</domain>
"""
MONITOR = """
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:/run/kvmft/qmp/{name}.sock,server=on,wait=off'/>
  </qemu:commandline>"""


@dataclass(frozen=True)
class Guest:
    """One kind of guest: its address on the lan and the port that shows that it is up."""

    name: str
    kind: str
    uuid: str
    mac: str
    address: str
    port: int
    memory: int
    cmdline: str
    vcpus: int = 1


POSTGRES = Guest("db1", "postgres", "6b766d66-7400-4000-8000-0000000000d1", "52:54:00:93:00:50",
                 "10.93.0.50", 5432, 512, "root=/dev/vda rw net.ifnames=0")  # fmt: skip
QUICK = Guest("quick1", "quick", "6b766d66-7400-4000-8000-0000000000a1", "52:54:00:93:00:51",
              "10.93.0.51", 7000, 128, "")  # fmt: skip


def domain_xml(guest: Guest, own_monitor: bool = False, **changes: str) -> str:
    """The guest's domain XML; `changes` replaces text in it (old=new)."""
    extra = MONITOR.format(name=guest.name) if own_monitor else ""
    xml = XML.format(
        name=guest.name, uuid=guest.uuid, memory=guest.memory, vcpus=guest.vcpus, kind=guest.kind,
        cmdline=guest.cmdline, images=IMAGES, mac=guest.mac, extra=extra,
    )  # fmt: skip
    for old, new in changes.items():
        xml = xml.replace(old, new)
    return xml


def start(lab: Lab, host: str, guest: Guest, own_monitor: bool = False) -> None:
    """Copy the guest's disk to `host`, define it and start it, as an administrator would."""
    lab.run(host, f"mkdir -p {IMAGES} /run/kvmft/qmp && chown libvirt-qemu /run/kvmft/qmp && "
            f"test -e {IMAGES}/{guest.name}.raw || "
            f"cp --sparse=always /opt/guests/{guest.kind}/disk.raw {IMAGES}/{guest.name}.raw")  # fmt: skip
    xml = domain_xml(guest, own_monitor)
    lab.run(host, f"cat > /root/{guest.name}.xml <<'END'\n{xml}END\n"
            f"virsh -q define /root/{guest.name}.xml && virsh -q start {guest.name}")  # fmt: skip


def wait_up(lab: Lab, guest: Guest, seconds: float = 300) -> float:
    """Wait until the guest answers on its port; seconds that it took."""
    begun = time.monotonic()
    probe = f"exec 3<>/dev/tcp/{guest.address}/{guest.port}"
    import subprocess

    while time.monotonic() - begun < seconds:
        command = lab.inside("timeout", "2", "bash", "-c", probe)
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return time.monotonic() - begun
        time.sleep(0.3)
    raise RuntimeError(f"guest {guest.name} did not answer within {seconds} s")
