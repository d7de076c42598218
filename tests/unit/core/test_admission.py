"""What a host lacks for a standby: every reason at once, with need and have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvmft.core.admission import REASONS, FileFact, HostFacts, Replica, Request, lacking
from kvmft.core.domain import Domain, Nic, describe
from kvmft.errors import KvmftError
from tests.lab.guests import POSTGRES, domain_xml

KERNEL = "/opt/guests/postgres/kernel"
BASE = describe(domain_xml(POSTGRES))
VM = replace(BASE, networks=("blue",), nvram="/nvram/db1_VARS.fd", nvram_template="/fw/VARS.fd")
FILES = {path: FileFact(100, "aa") for path in VM.files}
TOLD = Request(FILES)
REPLICA = Replica("vda", "/pool/a.raw", 2 << 30, 0, False, True, "/pool")
FACTS = HostFacts(
    memory=2 << 30, replicas=(REPLICA,), free={"/pool": 3 << 30}, files=FILES,
    bridges=frozenset({"br0"}), networks={"blue": True}, domains={},
)  # fmt: skip
OTHER = "11111111-2222-3333-4444-555555555555"
LACKS: dict[str, list[HostFacts]] = {
    "memory": [replace(FACTS, memory=575 << 20)],
    "disk_space": [replace(FACTS, free={"/pool": 1 << 30})],
    "replica_path_taken": [
        replace(FACTS, replicas=(replace(REPLICA, used=4096),)),
        replace(FACTS, replicas=(replace(REPLICA, regular=False),)),
        replace(FACTS, replicas=(replace(REPLICA, size=0), replace(REPLICA, target="vdb", size=0))),
    ],
    "emulator_missing": [replace(FACTS, emulator=False)],
    "machine_unknown": [replace(FACTS, cannot_run="the machine 'q36' is not supported")],
    "cpu_differs": [replace(FACTS, cpu_missing="the CPU lacks: avx512f")],
    "file_missing": [replace(FACTS, files={path: fact for path, fact in FILES.items() if path != KERNEL})],
    "file_differs": [replace(FACTS, files={**FILES, KERNEL: FileFact(100, "bb")}),
                     replace(FACTS, files={**FILES, KERNEL: FileFact(101, "aa")})],
    "nvram_template": [replace(FACTS, nvram=False, nvram_template=False)],
    "bridge_missing": [replace(FACTS, bridges=frozenset())],
    "network_missing": [replace(FACTS, networks={}), replace(FACTS, networks={"blue": False})],
    "mac_taken": [replace(FACTS, domains={"db2": (OTHER, frozenset({POSTGRES.mac.lower()}))})],
    "name_taken": [replace(FACTS, domains={"db1": (OTHER, frozenset())})],
    "managed_save": [replace(FACTS, managed_save=True)],
}  # fmt: skip


def test_a_host_with_everything_takes_it() -> None:
    assert lacking(VM, TOLD, FACTS) == []


def test_every_reason_of_the_list_has_a_case_here() -> None:
    assert set(LACKS) == set(REASONS)


@pytest.mark.parametrize(("code", "facts"), [(c, f) for c, each in LACKS.items() for f in each])
def test_what_is_lacking_is_the_only_finding(code: str, facts: HostFacts) -> None:
    found = lacking(VM, TOLD, facts)
    assert [each.code for each in found] == [code]
    assert found[0].message.endswith(".") and found[0].remedy == REASONS[code][1]


def test_need_and_have_are_named() -> None:
    found = lacking(VM, TOLD, replace(FACTS, memory=100 << 20, free={"/pool": 1 << 30}))
    assert [each.message for each in found] == [
        "The secondary needs 576 MiB of memory and has 100 MiB.",
        "The replica needs 2048 MiB in /pool; 1024 MiB are free.",
    ]


def test_all_reasons_are_told_at_once() -> None:
    facts = HostFacts(
        memory=0, replicas=(replace(REPLICA, used=1),), free={"/pool": 0}, files={},
        bridges=frozenset(), networks={}, emulator=False, cpu_missing="x", nvram=False,
        nvram_template=False, managed_save=True,
        domains={"db1": (OTHER, frozenset()), "db2": (OTHER, frozenset({POSTGRES.mac}))},
    )  # fmt: skip
    told = {each.code for each in lacking(VM, TOLD, facts)}
    assert told == set(REASONS) - {"machine_unknown", "file_differs"}


def test_room_is_counted_for_each_file_system_and_what_is_there_counts() -> None:
    first = Replica("vda", "/a/1.raw", 4 << 30, 3 << 30, True, True, "/a")
    second = Replica("vdb", "/b/2.raw", 4 << 30, 0, False, True, "/b")
    facts = replace(FACTS, replicas=(first, second), free={"/a": 1 << 30, "/b": 4 << 30})
    assert lacking(VM, TOLD, facts) == []
    third = replace(second, target="vdc", path="/b/3.raw", size=1)
    found = lacking(VM, TOLD, replace(facts, replicas=(first, second, third)))
    assert [each.code for each in found] == ["disk_space"] and "/b" in found[0].message


def test_the_vms_own_definition_is_no_other_vm() -> None:
    ours = {"db1": (VM.uuid, frozenset({POSTGRES.mac.lower()}))}
    assert lacking(VM, TOLD, replace(FACTS, domains=ours)) == []


def test_an_existing_nvram_file_needs_no_template() -> None:
    assert lacking(VM, TOLD, replace(FACTS, nvram_template=False)) == []


def test_interfaces_without_an_address_collide_with_nothing() -> None:
    vm: Domain = replace(VM, nics=(Nic("net0", ""),))
    assert lacking(vm, TOLD, replace(FACTS, domains={"a": (OTHER, frozenset({""}))})) == []


def test_facts_cross_the_network_unchanged() -> None:
    told = Request({"/a": FileFact(1, "ff")}, "<cpu/>")
    assert Request.read(told.to_dict()) == told
    assert Request.read(None) == Request()


@pytest.mark.parametrize("value", [[], "x", {"files": []}, {"files": {"/a": {}}}, {"files": {"/a": 3}},
                                   {"files": {"/a": {"size": "many", "sha256": ""}}}])  # fmt: skip
def test_malformed_facts_are_one_clear_error(value: object) -> None:
    with pytest.raises(KvmftError, match="facts are malformed"):
        Request.read(value or [1])
