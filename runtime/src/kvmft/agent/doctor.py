"""Probes by doing: each answers whether this host can do one thing that kvmft needs."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kvmft.adapters import linux
from kvmft.adapters.memory import GuestMemory, RamBlock
from kvmft.adapters.pagemap import Pagemap
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent

_CHILD = (
    "import mmap, ctypes, sys\n"
    "area = mmap.mmap(-1, 65536, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "area[0] = 1\n"
    "print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)\n"
    "for line in sys.stdin:\n"
    "    area[int(line) * 4096] = 7\n"
    "    print('done', flush=True)\n"
)


def probe_pagemap_scan() -> str:
    """PAGEMAP_SCAN on our own memory."""
    area = mmap.mmap(-1, linux.PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[0] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    pagemap = Pagemap(os.getpid())
    try:
        found = pagemap.populated(start, start + linux.PAGE)
    except OSError as error:
        raise KvmftError(
            "kernel_without_pagemap_scan",
            f"This kernel ({os.uname().release}) has no PAGEMAP_SCAN: {error}.",
            "Boot Linux 6.7 or newer (Debian 12: linux-image-amd64 of bookworm-backports).",
        ) from error
    finally:
        pagemap.close()
    return f"{len(found)} range found"


def probe_tracking() -> str:
    """The whole of memory tracking on a child process: injection, protection, scan, copy."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            start = int(child.stdout.readline())
            memory = GuestMemory()
            memory.attach(child.pid, [RamBlock("probe", start, 65536, "anon")])
            child.stdin.write("5\n")
            child.stdin.flush()
            child.stdout.readline()
            ranges = memory.collect()
            want = np.array([[start + 5 * linux.PAGE, start + 6 * linux.PAGE]], dtype=np.uint64)
            buffer = memoryview(bytearray(linux.PAGE))
            memory.read(want, buffer)
            memory.detach()
        finally:
            child.kill()
    if ranges.tolist() != want.tolist() or buffer[0] != 7:
        raise KvmftError("tracking", f"One page was written, but {ranges.tolist()} was found.",
                         "Report it with the kernel's version.")  # fmt: skip
    return "one written page of 16 was found and copied"


def kernel_findings() -> list[KvmftError]:
    """What the kernel lacks; empty when nothing."""
    found = []
    for probe in (probe_pagemap_scan, probe_tracking):
        try:
            probe()
        except KvmftError as error:
            found.append(error)
            break  # the second needs the first
    return found


def accelerator() -> str:
    """`kvm` where this host's /dev/kvm starts a QEMU, else `tcg`."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory() as directory:
        command = ["qemu-system-x86_64", "-accel", "kvm", "-machine", "q35", "-m", "16",
                   "-nodefaults", "-display", "none", "-S", "-daemonize", "-pidfile",
                   os.path.join(directory, "pid")]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=10, check=False)
            if done.returncode != 0:
                return "tcg"
            with open(os.path.join(directory, "pid"), encoding="ascii") as file:
                os.kill(int(file.read()), 9)
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return "tcg"
    return "kvm"


def _probe_accelerator() -> str:
    found = accelerator()
    return "KVM" if found == "kvm" else "no usable /dev/kvm: guests run under emulation (TCG)"


async def run(agent: Agent) -> list[dict[str, Any]]:
    """All probes, in the order in which their failures should be mended."""
    results: list[dict[str, Any]] = []

    async def probe(name: str, call: Callable[[], str]) -> None:
        try:
            detail = await asyncio.to_thread(call)
            results.append({"probe": name, "ok": True, "detail": detail, "remedy": ""})
        except KvmftError as error:
            results.append(
                {"probe": name, "ok": False, "detail": error.message, "remedy": error.remedy}
            )

    def versions() -> str:
        found = agent.host.versions()
        return f"QEMU {found['qemu']}, libvirt {found['libvirt']}"

    await probe("kernel: PAGEMAP_SCAN", probe_pagemap_scan)
    await probe("kernel: tracking another process", probe_tracking)
    await probe("libvirt and QEMU", versions)
    await probe("accelerator", _probe_accelerator)
    for peer in sorted(agent.config.peers):
        try:
            answer = await agent.peers.call(peer, "peer_ping")
            results.append({"probe": f"peer {peer}", "ok": True,
                            "detail": f"kvmft {answer['version']}", "remedy": ""})  # fmt: skip
        except KvmftError as error:
            results.append({"probe": f"peer {peer}", "ok": False, "detail": error.message,
                            "remedy": error.remedy})  # fmt: skip
    await agent.probe_arbiter()
    results.append({"probe": "arbiter", "ok": bool(agent.arbiter_ok),
                    "detail": agent.arbiter_reason,
                    "remedy": "" if agent.arbiter_ok else "Without it there is no failover."})  # fmt: skip
    return results
