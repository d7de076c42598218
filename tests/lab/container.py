"""Tests of one machine on another Debian: in a container with that release's QEMU and Python.

The container has its own root file system (thrown away afterwards), network (loopback alone) and
process numbers; the project is at the same path as here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab import images
from tests.lab.lab import ROOT, SYSCALLS, device_options


def own_release() -> str | None:
    """This machine's Debian release (`12`); None on another system."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_ID", "").strip('"') if values.get("ID") == "debian" else None


def run(release: str, *command: str) -> int:
    """Run `command` in the project's folder on Debian `release`; its exit code."""
    root = images.test_root(release)
    name = f"kvmft-tests-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="kvmft-container-") as scratch:
        temporary = Path(scratch) / "tmp"
        temporary.mkdir()
        temporary.chmod(0o1777)
        nspawn = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2",
            f"--directory={root}", "--volatile=overlay", f"--machine={name}",
            "--private-network", "--capability=all", f"--system-call-filter={SYSCALLS}",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe",
            f"--bind={ROOT}", f"--bind={temporary}:/tmp", f"--chdir={ROOT}",
            f"--setenv=PYTHONPATH={ROOT}:{ROOT / 'runtime' / 'src'}",
            *device_options(Path(scratch)),
        ]  # fmt: skip
        try:
            return subprocess.run([*nspawn, *command], check=False).returncode
        finally:
            # Where /run is no tmpfs, systemd-nspawn leaves its (empty) folder of propagated mounts.
            with contextlib.suppress(OSError):
                Path(f"/run/systemd/nspawn/propagate/{name}").rmdir()
