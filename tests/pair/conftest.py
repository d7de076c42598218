"""A pair per test, under TCG; with `on_each` also under KVM, where /dev/kvm boots a guest."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.pair.bootsector import counts_on_serial, write_disk
from tests.pair.harness import Pair, wait_for


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: no other test of a pair runs meanwhile, in whichever process of this run")


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests run side by side, except those marked `alone`."""
    run = tmp_path_factory.getbasetemp()
    directory = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    with open(directory / "next", "w") as turn, open(directory / "running", "w") as running:
        # Who waits for all others holds the turn, so that no other begins before it.
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


@cache
def kvm_boots() -> bool:
    """True when the boot-sector guest counts under KVM: tried, not guessed from the device file."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.TemporaryDirectory() as directory:
        disk, serial = Path(directory) / "disk", Path(directory) / "serial"
        write_disk(disk)
        process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-m", "64", "-nodefaults", "-display", "none",
             "-serial", f"file:{serial}", "-drive", f"file={disk},format=raw,if=virtio"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for("counting", lambda: serial.exists() and counts_on_serial(serial), 15)
        except AssertionError:
            return False
        finally:
            process.kill()
            process.wait()
    return True


ACCELERATORS = ["tcg", *(["kvm"] if kvm_boots() else [])]


def on_each(fixture: str = "pair") -> pytest.MarkDecorator:
    """Run a test on each accelerator that there is here.

    That is for what the accelerator has a part in: which pages are dirty, what is read and written of memory and of
    devices, the guest's time, how a QEMU is stopped, started and called into. Tests of the protocol, of the arbiter, of
    detection, of disks and of who dies when need one accelerator, and take what `pair` has by itself: TCG, which is
    everywhere, and boots the guest in half a second where a KVM inside a virtual machine takes four or more.
    """
    return pytest.mark.parametrize(fixture, ACCELERATORS, indirect=True)


def _accelerator(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "tcg"))


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with _counting(Pair(tmp_path, _accelerator(request))) as made:
        yield made


@pytest.fixture
def threaded_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Its disk has an iothread."""
    with _counting(Pair(tmp_path, _accelerator(request), iothread=True)) as made:
        yield made


@pytest.fixture
def private_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """The VM's memory is private at first, as that of a VM that plain virsh started."""
    with _counting(Pair(tmp_path, _accelerator(request), private=True)) as made:
        yield made


@contextmanager
def _counting(made: Pair) -> Iterator[Pair]:
    try:
        wait_for("the guest counting", lambda: made.primary_vm.counts, 30)
        yield made
    finally:
        made.stop()
