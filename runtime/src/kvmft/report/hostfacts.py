"""What figures depend on, of this host: its CPU, kernel and how they are set."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

CPUS = "sys/devices/system/cpu"


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """CPU model, cores that may be used, MiB of memory, kernel, and settings of power and memory; None where the
    kernel does not say. `governor` has every one that is set on some CPU; `thp` is the choice for huge pages."""
    cpuinfo, meminfo = _read(root / "proc/cpuinfo") or "", _read(root / "proc/meminfo") or ""
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    governors = {_read(each) for each in root.glob(f"{CPUS}/cpu[0-9]*/cpufreq/scaling_governor")} - {None}
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory[1]) >> 10 if memory else None,
        "numa_nodes": len([*root.glob("sys/devices/system/node/node[0-9]*")]) or None,
        "kernel": platform.release(),
        "thp": _chosen(root / "sys/kernel/mm/transparent_hugepage/enabled"),
        "thp_shmem": _chosen(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "governor": ", ".join(sorted(each for each in governors if each)) or None,
        "smt": _read(root / f"{CPUS}/smt/control"),
        "preemption": _chosen(root / "sys/kernel/debug/sched/preempt", "()"),
        "hypervisor": "hypervisor" in cpuinfo,
    }  # fmt: skip


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _chosen(path: Path, brackets: str = "[]") -> str | None:
    """Of `always [madvise] never` the word in brackets."""
    opening, closing = (re.escape(each) for each in brackets)
    found = re.search(f"{opening}(.+?){closing}", _read(path) or "")
    return found[1] if found else None
