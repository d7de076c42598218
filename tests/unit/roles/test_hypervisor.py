"""The hypervisor role's scripts, run as a host runs them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

FILES = Path(__file__).parents[3] / "roles" / "hypervisor" / "files"
VM = "libvirt-6b766d66-7400-4000-8000-0000000000a1"
ENDED = "libvirt-6b766d66-7400-4000-8000-0000000000a2"


class Host:
    """A list of loaded profiles, libvirt's folder, and a parser that notes what it is given."""

    def __init__(self, root: Path, parser_exit: int) -> None:
        self.loaded, self.folder, self.calls = root / "loaded", root / "libvirt", root / "calls"
        self.folder.mkdir()
        bin_ = root / "bin"
        bin_.mkdir()
        parser = bin_ / "apparmor_parser"
        parser.write_text(f'#!/bin/sh\necho "$@" >>{self.calls}\nexit {parser_exit}\n')
        parser.chmod(0o755)
        self.path = f"{bin_}:{os.environ['PATH']}"

    def reload(self) -> int:
        return subprocess.run(
            ["sh", str(FILES / "reload-profiles.sh"), str(self.loaded), str(self.folder)],
            env={"PATH": self.path}, check=False,
        ).returncode  # fmt: skip


@pytest.mark.parametrize("parser_exit", [0, 1])
def test_profiles_of_running_vms_are_loaded_anew_and_no_others(
    tmp_path: Path, parser_exit: int
) -> None:
    host = Host(tmp_path, parser_exit)
    host.loaded.write_text(
        f"libvirtd (enforce)\nlibvirtd//qemu_bridge_helper (enforce)\n{VM} (enforce)\n"
        f"{ENDED} (enforce)\n/usr/sbin/tcpdump (complain)\n"
    )
    (host.folder / VM).write_text("")
    (host.folder / f"{VM}.files").write_text("")
    assert host.reload() == parser_exit
    assert host.calls.read_text() == f"--replace {host.folder / VM}\n"


def test_without_apparmor_there_is_nothing_to_load(tmp_path: Path) -> None:
    host = Host(tmp_path, 1)
    assert host.reload() == 0
    assert not host.calls.exists()


def test_the_hook_leaves_libvirts_profile_before_it_runs_what_is_not_in_usr_bin() -> None:
    """Debian's profile usr.sbin.libvirtd has `/usr/bin/* PUx` and no rule for /usr/local or /opt."""
    hook = (FILES / "libvirt-hook.sh").read_text()
    assert re.findall(r"^exec (\S+)", hook, re.MULTILINE) == ["/usr/bin/env"]


@pytest.mark.parametrize("system", ["Debian-12", "Debian-13", "Ubuntu-24.04", "unknown"])
def test_every_system_says_the_same_things(system: str) -> None:
    found = yaml.safe_load((FILES.parent / "vars" / f"{system}.yml").read_text())["kvmft_hypervisor_os"]
    assert set(found) == {"service", "packages", "kernel"}
    assert bool(found["kernel"]) == (system == "Debian-12")
    if system != "unknown":
        needed = {"qemu-system-x86", "libvirt-daemon-system", "python3-libvirt", "python3-numpy", "python3-venv"}
        assert needed <= set(found["packages"]) and found["service"] == "libvirtd"
