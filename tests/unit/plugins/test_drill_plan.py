"""What the groups, checks and objectives of a drill are understood as, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from . import drills

plans = drills.util("_drill_plan")


def test_the_simple_forms_stay() -> None:
    assert [step["name"] for step in plans.plan(vm="db1")] == ["db1"]
    rows = ["a", {"name": "b", "secondary": "node-b", "options": {"interval_ms": 10}}]
    assert [step["name"] for step in plans.plan(vms=rows)] == ["a", "b"]
    assert plans.plan(vm="db1")[0] == {
        "number": 1, "group": "", "name": "db1", "address": "", "addresses": {}, "checks": [],
        "probe": None, "objectives": {}, "network_map": {}, "readdress": {},
    }  # fmt: skip


def test_groups_are_the_order_and_take_details_of_the_list() -> None:
    groups = [{"name": "directory", "vms": ["dir1"]},
              {"name": "database", "vms": ["db1", {"name": "db2", "address": "192.0.2.9"}],
               "health": {"type": "tcp", "port": 5432, "retries": 3}, "objectives": {"rto_ms": 700}}]  # fmt: skip
    known = [{"name": "db1", "address": "192.0.2.8", "objectives": {"rpo_ms": 0}}, "other"]
    steps = plans.plan(groups=groups, vms=known, objectives={"rto_ms": 1000})
    assert [(step["number"], step["group"], step["name"]) for step in steps] == [
        (1, "directory", "dir1"), (2, "database", "db1"), (3, "database", "db2")
    ]  # fmt: skip
    assert [step["objectives"] for step in steps] == [
        {"rto_ms": 1000}, {"rto_ms": 700, "rpo_ms": 0}, {"rto_ms": 700}
    ]  # fmt: skip
    assert steps[1]["checks"][0]["name"] == "tcp 192.0.2.8:5432" and steps[1]["checks"][0]["retries"] == 3
    assert [step["name"] for step in plans.plan(groups=groups, vms=known, vm="db2")] == ["db2"]


def test_a_vm_is_watched_as_its_first_check_asks_or_by_ping() -> None:
    def probe(**row: Any) -> Any:
        return plans.plan(vms=[{"name": "a", **row}])[0]["probe"]

    health = [{"type": "agent", "command": "true"}, {"type": "tcp", "port": 5432, "timeout": 9, "delay": 3}]
    made = probe(address="192.0.2.8", health=health)
    assert (made["type"], made["port"], made["interval_ms"]) == ("tcp", 5432, 50)
    assert probe(address="192.0.2.8")["type"] == "icmp"
    assert probe() is None and probe(address="192.0.2.8", probe=False) is None
    moved = probe(address="192.0.2.8", readdress={"node-b": {"interface": "eth0", "address": "198.51.100.8/24"}})
    assert moved["hosts"] == ["192.0.2.8", "198.51.100.8"]


def test_checks_get_their_defaults() -> None:
    check = plans.plan(vms=[{"name": "a", "address": "2001:db8::1", "health": {
        "type": "http", "path": "/up", "port": 8080, "status": 204}}])[0]["checks"][0]  # fmt: skip
    assert (check["timeout"], check["retries"], check["delay"], check["status"]) == (5, 12, 5, [204])
    assert plans.url_of(check, "2001:db8::1") == "http://[2001:db8::1]:8080/up"
    agent = plans.plan(vms=[{"name": "a", "health": {"type": "agent", "command": "pg_isready -q"}}])
    assert agent[0]["checks"][0]["command"] == ["/bin/sh", "-c", "pg_isready -q"]


ADDRESSED = {"name": "a", "address": "192.0.2.8"}
LINE = {"type": "line", "port": 7, "send": "m {n}", "expect": "ok"}


@pytest.mark.parametrize(("given", "said"), [
    ({}, "No VM is named. Give -e vm=NAME"),
    ({"groups": [{"name": "x", "vms": []}]}, "kvmft_drill_groups[0].vms is empty"),
    ({"groups": [{"vms": ["a"]}]}, "kvmft_drill_groups[0].name is missing"),
    ({"groups": [{"name": "x", "vms": ["a"]}, {"name": "x", "vms": ["b"]}]}, "as that of another group"),
    ({"groups": [{"name": "x", "vms": ["a"]}, {"name": "y", "vms": ["a"]}]}, "VM a is in kvmft_drill_groups twice"),
    ({"groups": [{"name": "x", "vms": ["a"]}], "vm": "b"}, "VM b is in none of the groups"),
    ({"groups": [{"name": "x", "members": ["a"]}]}, "kvmft_drill_groups[0].members is not known"),
    ({"groups": "x"}, "kvmft_drill_groups must be a list"),
    ({"vms": ["a", "a"]}, "kvmft_vms[1] names VM a a second time"),
    ({"vms": [{"nam": "a"}]}, "kvmft_vms[0].nam is not known"),
    ({"vms": [7]}, "kvmft_vms[0] must be a mapping"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "udp"}]}]}, "needs a type, one of tcp, http, icmp, agent, tasks"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "tcp"}]}]}, "kvmft_vms[0].health[0].port is missing"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "tcp", "port": 70000}]}]}, "a port is a number from 1 to 65535"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "tcp", "port": 1, "retires": 2}]}]}, "retires is not known"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "tcp", "port": 1, "timeout": 0}]}]}, "timeout is 0"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "tcp", "port": 1, "delay": -1}]}]}, "not negative"),
    ({"vms": [{"name": "a", "health": [{"type": "tcp", "port": 1}]}]}, "has no address to ask"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "http", "url": "ftp://x"}]}]}, "begins with http:// or https://"),
    ({"vms": [{**ADDRESSED, "health": [{"type": "http", "body": "("}]}]}, "is no regular expression"),
    ({"vms": [{"name": "a", "health": [{"type": "agent"}]}]}, "command is missing"),
    ({"vms": [{"name": "a", "health": [{"type": "tasks"}]}]}, "file is missing"),
    ({"vms": [{**ADDRESSED, "probe": {**LINE, "send": "m"}}]}, "send has no {n}"),
    ({"vms": [{**ADDRESSED, "probe": {**LINE, "expect": ""}}]}, "expect is missing"),
    ({"vms": [{**ADDRESSED, "probe": {**LINE, "verify_send": "r"}}]}, "verify_send and verify_expect"),
    ({"vm": "a", "objectives": {"rto": 5}}, "kvmft_drill_objectives.rto is not known"),
    ({"vm": "a", "objectives": {"rto_ms": "soon"}}, "must be a number that is not negative"),
    ({"vm": "a", "network_map": {"br0": "br1"}}, "must map each host"),
    ({"vms": [{"name": "a", "readdress": {"node-b": {"address": "192.0.2.8/24"}}}]}, "Give interface or mac"),
    ({"vms": [{"name": "a", "readdress": {"node-b": {"mac": "x", "address": "192.0.2.8"}}}]}, "with its prefix"),
    ({"vms": [{"name": "a", "readdress": {"node-b": []}}]}, "node-b is empty"),
])  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_path(given: dict[str, Any], said: str) -> None:
    with pytest.raises(plans.PlanError) as refused:
        plans.plan(**given)
    assert said in str(refused.value)
