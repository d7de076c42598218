"""Putting capture into a running QEMU and taking it out again: disk mirrors and redirectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvmft.adapters.qmp import Command, Monitor, MonitorError, command
from kvmft.adapters.redirector import attach_commands, detach_commands, is_connected
from kvmft.errors import KvmftError

PREFIX = "kvmft"


def node_of(blocks: list[dict[str, Any]], path: str) -> str:
    """The block node of the device whose image is `path`, from `query-block`'s answer."""
    for block in blocks:
        inserted = block.get("inserted")
        if inserted and path in (inserted.get("file"), inserted.get("image", {}).get("filename")):
            node = inserted.get("node-name")
            if node:
                return str(node)
    raise KvmftError(
        "disk_not_found",
        f"QEMU has no disk whose image is {path}.",
        "Run the operation again; if it stays, compare `virsh domblklist` with this path.",
    )


def job_of(target: str) -> str:
    """The block job's and the target node's name for disk `target`."""
    return f"{PREFIX}-{target}"


def add_target(monitor: Monitor, target: str, socket_path: str) -> None:
    """Connect QEMU to the NBD server on `socket_path`, for the mirror of disk `target`."""
    monitor.execute(
        "blockdev-add",
        driver="nbd",
        node_name=job_of(target),
        server={"type": "unix", "path": socket_path},
        export=target,
    )


def start_mirror(monitor: Monitor, target: str, node: str, speed: int = 0) -> None:
    """Mirror `node` to what `add_target` connected, each guest write passing us first.

    The VM must be stopped: a guest's write from an iothread that overtakes the job's first steps
    finds no bitmap of what is in flight, and QEMU dies of it (7.2, block/mirror.c: `mirror_run`
    makes the bitmap that `active_write_prepare` uses). A stopped VM's disks are all in QEMU's main
    loop, where the job takes those steps at once.

    `speed` bounds the copy of what is there already, in bytes per second; 0 does not. An error
    pauses the job, it does not end it: a mirror that ends in a running VM may take QEMU with it
    (see `Mirrors.remove`), and the guest's own writes go on either way.
    """
    monitor.execute(
        "blockdev-mirror",
        job_id=job_of(target),
        device=node,
        target=job_of(target),
        sync="full",
        copy_mode="write-blocking",
        on_source_error="stop",
        on_target_error="stop",
        **({"speed": speed} if speed else {}),
    )


def at_rest(found: dict[str, dict[str, Any]]) -> bool:
    """Whether every job (of `jobs`) is paused, so that nothing of its own runs."""
    return all(job["status"] in ("paused", "standby") for job in found.values())


def rest(monitor: Monitor, names: Iterable[str]) -> None:
    """Pause the jobs of these names; `at_rest` tells when they are.

    Before every `stop`: it moves a disk out of its iothread, and QEMU 10 aborts when a job is
    about to go on there at that moment (job.c: `job_set_aio_context` asserts that it is paused;
    the drain before takes a job that was just let go for a paused one). A mirror that has copied
    everything has nothing left to do of its own; the guest's writes go through it all the same.
    """
    for name in names:
        quietly(monitor, command("block-job-pause", device=name))


def jobs(monitor: Monitor) -> dict[str, dict[str, Any]]:
    """Our block jobs by id, as `query-block-jobs` shows them (len and offset in bytes)."""
    found = monitor.execute("query-block-jobs")
    return {job["device"]: job for job in found if job["device"].startswith(PREFIX + "-")}


def quietly(monitor: Monitor, item: Command) -> bool:
    """Run a command whose object may be gone already; false when QEMU refused it."""
    try:
        monitor.perform(item)
    except MonitorError:
        return False
    return True


def remove_redirectors(monitor: Monitor, nics: tuple[str, ...], run_dir: str) -> None:
    """Open the VM's output: after this, packets flow as if we had never been there."""
    for nic in nics:
        for item in detach_commands(f"host{nic}", f"{PREFIX}-{nic}", run_dir):
            quietly(monitor, item)


def redirectors_connected(monitor: Monitor, nics: tuple[str, ...]) -> bool:
    """True once no packet of the guest is dropped any more for want of a connection."""
    found = monitor.execute("query-chardev")
    return all(is_connected(found, f"{PREFIX}-{nic}") for nic in nics)


def install_redirector(monitor: Monitor, nic: str, run_dir: str) -> None:
    """Put the redirector of interface `nic` (libvirt alias, `net0`) into the VM's output."""
    for item in attach_commands(f"host{nic}", f"{PREFIX}-{nic}", run_dir):
        monitor.perform(item)
