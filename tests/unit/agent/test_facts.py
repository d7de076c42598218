"""What a host finds out about itself for an admission, with a libvirt made to order."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from kvmft.agent import facts
from kvmft.agent.host import replica_path
from kvmft.core.admission import FileFact, Request, lacking
from kvmft.core.domain import Domain, describe
from kvmft.errors import KvmftError
from tests.lab.guests import POSTGRES, domain_xml

VM: Domain = replace(describe(domain_xml(POSTGRES)), files=(), bridges=("lo",), emulator="/bin/sh")
OTHER = "<domain><name>{}</name><uuid>{}</uuid><devices><interface><mac address='{}'/></interface></devices></domain>"


def refused(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("refused")
    error.err = (code, 0, "refused", *(0,) * 6)
    return error


class Row:
    """A domain or network of libvirt's; what is called answers `answer`, or raises it."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        def call(*_args: Any) -> Any:
            if isinstance(self._answer, Exception):
                raise self._answer
            return self._answer

        return call


class Connection:
    """libvirt on a host where all is well, unless a test replaces an answer."""

    def __init__(self, **answers: Any) -> None:
        self._answers = {
            "getDomainCapabilities": "<domainCapabilities/>", "compareHypervisorCPU": 1,
            "compareCPU": libvirt.VIR_CPU_COMPARE_IDENTICAL, "listAllDomains": [],
            "getCapabilities": "<capabilities><host><cpu><model>X</model></cpu></host></capabilities>",
            "networkLookupByName": Row(1), "lookupByUUIDString": Row(0), **answers,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(Row(self._answers[name]), name)


NOTHING_SAID = Request()


def found(
    connection: Connection, vm: Domain = VM, told: Request = NOTHING_SAID, **how: Any
) -> list[str]:
    rows = how.get("replicas", [])
    ours = how.get("ours", lambda path: False)
    gathered = facts.gather(connection, vm, told, rows, ours, 1 << 40)
    return [error.code for error in lacking(vm, told, gathered)]


def test_a_host_where_all_is_well_lacks_nothing() -> None:
    assert found(Connection(), replace(VM, networks=("blue",))) == []


def test_answers_of_libvirt_are_taken_as_they_are() -> None:
    no = refused(libvirt.VIR_ERR_INVALID_ARG)
    assert found(Connection(getDomainCapabilities=no)) == ["machine_unknown"]
    assert found(Connection(compareHypervisorCPU=no)) == ["cpu_differs"]
    assert found(Connection(lookupByUUIDString=Row(1))) == ["managed_save"]
    blue = replace(VM, networks=("blue",))
    assert found(Connection(networkLookupByName=Row(0)), blue) == ["network_missing"]
    missing = refused(libvirt.VIR_ERR_NO_NETWORK)
    assert found(Connection(networkLookupByName=missing), blue) == ["network_missing"]
    twin = Row(OTHER.format("db2", "other", POSTGRES.mac.upper()))
    assert found(Connection(listAllDomains=[twin])) == ["mac_taken"]
    assert found(Connection(listAllDomains=[Row(OTHER.format("db1", "other", ""))])) == ["name_taken"]
    gone = Row(refused(libvirt.VIR_ERR_NO_DOMAIN))
    assert found(Connection(listAllDomains=[gone], lookupByUUIDString=gone._answer)) == []


@pytest.mark.parametrize("asked", ["networkLookupByName", "listAllDomains", "lookupByUUIDString"])
def test_a_libvirt_that_does_not_answer_is_no_answer(asked: str) -> None:
    down = refused(libvirt.VIR_ERR_INTERNAL_ERROR)
    with pytest.raises(KvmftError, match="libvirt does not answer"):
        found(Connection(**{asked: down}), replace(VM, networks=("blue",)))


def test_the_bridge_must_be_there() -> None:
    assert found(Connection(), replace(VM, bridges=("br-nowhere",))) == ["bridge_missing"]
    assert found(Connection(), replace(VM, bridges=("../net/lo",))) == ["bridge_missing"]


SEES_HOST = replace(VM, accelerator="kvm", cpu_mode="host-passthrough", cpu="<cpu mode='host-passthrough'/>")


def test_host_passthrough_needs_the_very_cpu() -> None:
    told = facts.request_of(Connection(), SEES_HOST)
    assert "<model>X</model>" in told.host_cpu
    assert found(Connection(), SEES_HOST, told) == []
    more = Connection(compareCPU=libvirt.VIR_CPU_COMPARE_SUPERSET)
    assert found(more, SEES_HOST, told) == ["cpu_differs"]
    assert found(Connection(), SEES_HOST) == ["cpu_differs"]
    assert facts.request_of(Connection(), VM).host_cpu == ""


def test_under_emulation_the_hosts_cpu_is_no_matter() -> None:
    less = Connection(compareCPU=libvirt.VIR_CPU_COMPARE_INCOMPATIBLE)
    vm = replace(SEES_HOST, accelerator="tcg", cpu_mode="maximum")
    assert found(less, vm) == []


def test_files_are_compared_by_content_and_large_ones_by_size(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"one")
    first = facts.file_fact(str(path))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    second = facts.file_fact(str(path))
    assert first is not None and second is not None
    assert first.size == second.size and first.sha256 != second.sha256
    os.truncate(path, facts.WHOLE + 1)
    assert facts.file_fact(str(path)) == FileFact(facts.WHOLE + 1)
    assert facts.file_fact(str(tmp_path / "none")) is None
    vm = replace(VM, files=(str(path),))
    told = facts.request_of(Connection(), vm)
    assert found(Connection(), vm, told) == []
    os.truncate(path, 5)
    assert found(Connection(), vm, told) == ["file_differs"]
    path.unlink()
    assert found(Connection(), vm, told) == ["file_missing"]


def test_only_an_own_replica_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    row = ("vda", str(path), 4096)
    assert found(Connection(), replicas=[row]) == []
    path.write_bytes(b"x" * 4096)
    assert found(Connection(), replicas=[row]) == ["replica_path_taken"]
    assert found(Connection(), replicas=[row], ours=lambda each: each == str(path)) == []
    path.unlink()
    path.symlink_to("/dev/null")
    assert found(Connection(), replicas=[row], ours=lambda each: True) == ["replica_path_taken"]
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert found(Connection(), replicas=[row], ours=lambda each: True) == ["replica_path_taken"]


def test_room_is_that_of_the_file_system_of_the_replica(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made" / "yet"
    assert found(Connection(), replicas=[("vda", str(folder / "a.raw"), 1 << 60)]) == ["disk_space"]


@pytest.mark.parametrize(("disk", "want"), [
    ({"path": "{dir}/a.img", "format": "raw"}, "{dir}/a.img"),
    ({"path": "{dir}/a.img"}, "{dir}/a.img"),
    ({"path": "{dir}/a.qcow2", "format": "qcow2", "kind": "file"}, "{dir}/a.qcow2.raw"),
    ({"path": "{dir}/a.qcow2.raw", "format": "raw"}, "{dir}/a.qcow2.raw"),
    ({"path": "{dir}/nowhere/a.img", "format": "raw"}, "/pool/db1-vda.raw"),
    ({"path": "{dir}/nowhere/a.qcow2", "format": "qcow2"}, "/pool/db1-vda.raw"),
    ({"path": "{dir}/lv", "format": "raw", "kind": "block"}, "/pool/db1-vda.raw"),
])  # fmt: skip
def test_where_a_replica_lies(tmp_path: Path, disk: dict[str, str], want: str) -> None:
    disk = {**disk, "target": "vda", "path": disk["path"].format(dir=tmp_path)}
    assert replica_path(disk, "db1", "/pool") == want.format(dir=tmp_path)
