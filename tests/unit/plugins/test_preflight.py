"""The preflight role: every fault of inventories and hosts, each found with its remedy, all at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.roles.loading import plugin_util

from .conftest import ROOT

preflight = plugin_util("_preflight")
PROGRAM = Path(sys.executable).parent / "ansible-playbook"
PROBE = ROOT / "roles" / "preflight" / "files" / "probe.py"
NOW = 1_800_000_000.0
Cluster = dict[str, Any]


def _link(*addresses: str, **more: Any) -> dict[str, Any]:
    return {
        "mtu": 1500, "up": True, "carrier": True, "speed_mbit": 10000, "kind": "", "master": "", "parent": "",
        "addresses": [{"address": each, "prefix": 24} for each in addresses], **more,
    }  # fmt: skip


def _seen(last: int) -> dict[str, Any]:
    """What the probe prints on a good host."""
    return {
        "os": {"id": "debian", "version": "13", "name": "Debian GNU/Linux 13 (trixie)"},
        "cpu": {"architecture": "x86_64", "model": "A", "count": 8, "virtualization": True, "kvm": True, "page_bytes": 4096},
        "kernel": {"release": "6.12.1", "pagemap_scan": True, "ptrace_scope": 0}, "memory_mib": 8000,
        "clock": {"time": None, "synchronized": True}, "versions": {"qemu": "10.0.2", "libvirt": "11.3.0"},
        "security": {"apparmor": True, "apparmor_parser": True, "apparmor_local": True, "selinux_enforcing": False,
                     "cgroup": 2, "container": ""},
        "hostname": f"server{last}", "machine_id": f"{last:032x}", "mount": None,
        "free": {"/pool": {"free_mib": 9000, "size_mib": 10000, "mount": "/", "exists": False}},
        "links": {"lo": _link("127.0.0.1"), "eth0": _link(f"192.0.2.{last}"), "ft0": _link(f"10.91.0.{last}"),
                  "mig0": _link(f"10.92.0.{last}")},
        "default_routes": ["eth0"], "connection": f"192.0.2.{last}",
    }  # fmt: skip


def _variables(last: int) -> dict[str, Any]:
    return {
        "ansible_host": f"192.0.2.{last}", "kvmft_management_address": f"192.0.2.{last}",
        "kvmft_ft_address": f"10.91.0.{last}", "kvmft_ft_interface": "ft0",
        "kvmft_migration_address": f"10.92.0.{last}", "kvmft_migration_interface": "mig0",
    }  # fmt: skip


def _limits() -> dict[str, Any]:
    return {
        "min_kernel": "6.7", "min_memory_mb": 1024, "min_qemu": "7.2", "min_libvirt": "9.0", "max_clock_seconds": 5,
        "good_speed_mbit": 10000, "networks_manage": False, "cgroup_controllers": None,
        "free": {"/pool": {"id": "pool_space", "mb": 2048, "percent": 5, "remedy": "Make room"}},
    }  # fmt: skip


def _good() -> Cluster:
    hosts = {name: {"begun": NOW, "seen": _seen(last), "variables": _variables(last), "limits": _limits()}
             for name, last in (("node-a", 11), ("node-b", 12))}  # fmt: skip
    return {"hosts": hosts, "arbiters": {"witness": {"variables": {"kvmft_management_address": "192.0.2.13"}}}}


def _judge(cluster: Cluster) -> list[dict[str, Any]]:
    everything = {**cluster["arbiters"], **cluster["hosts"]}
    found: list[dict[str, Any]] = preflight.judge(list(cluster["hosts"]), list(cluster["arbiters"]), everything, NOW + 3)
    return found


def _see(path: str, value: Any, host: str = "node-b") -> Callable[[Cluster], None]:
    """Something else is seen on a host; `path` has dots."""

    def change(cluster: Cluster) -> None:
        place = cluster["hosts"][host]["seen"]
        *above, last = path.split(".")
        for each in above:
            place = place[each]
        place[last] = value

    return change


def _say(host: str, **values: Any) -> Callable[[Cluster], None]:
    return lambda cluster: cluster["hosts"][host]["variables"].update(values)


def _ask(**values: Any) -> Callable[[Cluster], None]:
    return lambda cluster: [each["limits"].update(values) for each in cluster["hosts"].values()] and None


def _arbiter(value: Any, mount: dict[str, Any] | None = None, machines: bool = False) -> Callable[[Cluster], None]:
    def change(cluster: Cluster) -> None:
        if not machines:
            cluster["arbiters"] = {}
        for each in cluster["hosts"].values():
            each["variables"]["kvmft_arbiter"] = value
            each["seen"]["mount"] = mount or {"target": "/srv", "fstype": "ocfs2", "options": "rw"}

    return change


def _nfs(options: str) -> Callable[[Cluster], None]:
    return _arbiter({"type": "file", "directory": "/srv"}, {"target": "/srv", "fstype": "nfs4", "options": options})


def _both(*changes: Callable[[Cluster], None]) -> Callable[[Cluster], None]:
    return lambda cluster: [each(cluster) for each in changes] and None


FILE = {"type": "file", "directory": "/srv"}
E, W = "error", "warning"
# name of the case: (what is planted, ids that are found, with severity, and words of the report)
CASES: dict[str, tuple[Callable[[Cluster], Any], list[tuple[str, str, str]], str]] = {
    "one host": (lambda c: c["hosts"].pop("node-b"), [("hosts_too_few", "inventory", E)], "Add the second"),
    "two arbiters": (lambda c: c["arbiters"].update(w2={"variables": {"kvmft_management_address": "192.0.2.14"}}),
                     [("arbiters_number", "inventory", E)], "kvmft_arbiter has 2 machines"),
    "arbiter on a host": (lambda c: c.update(arbiters={"node-a": {}}), [("arbiter_is_host", "inventory", E)],
                          "the arbiter node-a is a host too"),
    "same server twice": (_say("node-b", ansible_host="192.0.2.11"), [("address_twice", "inventory", E)],
                          "node-a and node-b have the same ansible_host 192.0.2.11"),
    "FT address missing": (_say("node-a", kvmft_ft_address=""), [("variable_missing", "inventory", E)],
                           "kvmft_ft_address is missing for node-a"),
    "arbiter's address missing": (lambda c: c["arbiters"].update(witness={"variables": {}}),
                                  [("variable_missing", "inventory", E)], "kvmft_management_address is missing for witness"),
    "address that is none": (_say("node-a", kvmft_ft_address="10.91.0.300"), [("address_malformed", "inventory", E)],
                             'kvmft_ft_address of node-a is "10.91.0.300", which is no IPv4 address'),
    "networks that contradict": (_say("node-a", kvmft_networks=[{"purpose": ["ft"]}]),
                                 [("networks_description", "inventory", E)], "0 networks with the purpose migration"),
    "arbiter of no known kind": (_arbiter({"type": "quorum"}), [("arbiter_kind", "inventory", E)] * 2, "has no type etcd"),
    "arbiter that is no mapping": (_arbiter("file"), [("arbiter_kind", "inventory", E)] * 2, "has no type etcd"),
    "arbiter without directory": (_arbiter({"type": "file"}), [("arbiter_directory", "inventory", E)] * 2,
                                  "kvmft_arbiter.directory of node-a is no absolute path"),
    "etcd without members": (_arbiter({"type": "etcd"}), [("arbiter_missing", "inventory", E)] * 2, "is etcd, but there is none"),
    "file and etcd at once": (_arbiter(FILE, machines=True), [("arbiter_two_kinds", "inventory", E)] * 2,
                              "is of type file, but the group kvmft_arbiter has machines for etcd"),
    "arbiters of two kinds": (_say("node-b", kvmft_arbiter={"type": "etcd"}), [("arbiter_differs", "inventory", E)],
                              "kvmft_arbiter of node-b is of another type than that of node-a"),
    "directory missing": (_both(_arbiter(FILE), _see("mount", None)), [("directory_missing", "node-b", E)],
                          "the directory /srv of the arbiter does not exist"),
    "directory not mounted": (_both(_arbiter(FILE), _see("mount", {"target": "/", "fstype": "ext4"})),
                              [("directory_not_mounted", "node-b", E)], "is on the root file system"),
    "NFS 3": (_nfs("rw,vers=3,hard"), [("directory_nfs_version", "node-a", E), ("directory_nfs_version", "node-b", E)],
              "Mount it with vers=4.1 or 4.2"),
    "soft NFS": (_nfs("rw,vers=4.2,soft"), [("directory_nfs_options", "node-a", E), ("directory_nfs_options", "node-b", E)],
                 "Mount it with hard"),
    "not examined": (lambda c: c["hosts"]["node-b"].update(seen={}), [("not_examined", "node-b", E)], "could not be examined"),
    "another system": (_see("os", {"id": "fedora", "version": "42", "name": "Fedora Linux 42"}), [("system", "node-b", E)],
                       "debian 12, debian 13, ubuntu 24.04"),
    "not x86-64": (_see("cpu.architecture", "aarch64"), [("cpu_architecture", "node-b", E), ("architecture_differs", "node-b", E)],
                   "the processor is aarch64"),
    "no KVM": (_see("cpu.kvm", False), [("kvm", "node-b", W)], "VT-x"),
    "kernel without PAGEMAP_SCAN": (_see("kernel", {"release": "6.1.0-18-amd64", "pagemap_scan": False}),
                                    [("kernel", "node-b", E)], "6.1.0-18-amd64; PAGEMAP_SCAN needs 6.7"),
    "old kernel that was not tried": (_see("kernel", {"release": "6.1.0-18-amd64", "pagemap_scan": None}),
                                      [("kernel", "node-b", E)], "bookworm-backports"),
    "old kernel that will be replaced": (_both(_see("kernel", {"release": "6.1.0", "pagemap_scan": False}),
                                               _ask(kernel_planned=True)), [("kernel", "node-b", W)], "and reboot"),
    "nobody may trace": (_see("kernel.ptrace_scope", 3), [("ptrace", "node-b", E)], "kernel.yama.ptrace_scope"),
    "too little memory": (_see("memory_mib", 512), [("memory", "node-b", E)], "(have: 512 MiB; need: 1024 MiB)"),
    "QEMU too old": (_see("versions.qemu", "6.2.0"), [("qemu_old", "node-b", E), ("qemu_differs", "node-b", W)], "need: 7.2"),
    "libvirt differs": (_see("versions.libvirt", "9.0.0"), [("libvirt_differs", "node-b", W)], "same release"),
    "nothing installed yet": (_see("versions", {"qemu": None, "libvirt": None}), [], "0 finding(s)"),
    "clock behind": (_see("clock.time", NOW - 60), [("clock", "node-b", E)], "60 s behind the controller's"),
    "clock ahead": (_see("clock.time", NOW + 63), [("clock", "node-b", E)], "60 s ahead of the controller's"),
    "clock within what is certain": (_see("clock.time", NOW + 7), [], "0 finding(s)"),
    "clock free": (_see("clock.synchronized", False), [("clock_free", "node-b", W)], "NTP"),
    "SELinux": (_see("security.selinux_enforcing", True), [("selinux", "node-b", E)], "setenforce 0"),
    "AppArmor without its parser": (_see("security.apparmor_parser", False), [("apparmor_parser", "node-b", E)], "package apparmor"),
    "AppArmor without local rules": (_see("security.apparmor_local", False), [("apparmor_local", "node-b", E)], "Restore"),
    "container": (_see("security.container", "systemd-nspawn"), [("cgroup", "node-b", E)], "to an empty list"),
    "container that is known": (_both(_see("security.container", "lxc"), _ask(cgroup_controllers=[])), [], "0 finding(s)"),
    "pool full": (_see("free./pool.free_mib", 100), [("pool_space", "node-b", E)], "(have: 100 MiB; need: 2048 MiB)"),
    "pool full by percent": (_both(_see("free./pool", {"free_mib": 3000, "size_mib": 99000, "mount": "/"})),
                             [("pool_space", "node-b", E)], "need: 4950 MiB"),
    "management address on no interface": (_say("node-b", kvmft_management_address="192.0.2.99"),
                                           [("management_address", "node-b", E)], "192.0.2.99 is on none of its interfaces"),
    "interface absent": (_say("node-a", kvmft_ft_interface="ft9"), [("ft_interface", "node-a", E)], "Set kvmft_ft_interface"),
    "address elsewhere": (_see("links.ft0.addresses", []), [("ft_address", "node-b", E)],
                          "the ft address 10.91.0.12 is not on ft0"),
    "slow link": (_see("links.mig0.speed_mbit", 100), [("migration_speed", "node-b", E)], "100 Mbit/s"),
    "link of one gigabit": (_see("links.ft0.speed_mbit", 1000), [("ft_speed_low", "node-b", W)], "slow for an FT network"),
    "MTU smaller than the peer's": (_see("links.ft0.mtu", 9000), [("mtu_differs", "node-a", E)],
                                    "the MTU of ft0 is not that of node-b on the ft network"),
    "MTU smaller than wanted": (_see("links.ft0.mtu", 1400), [("ft_mtu", "node-b", E), ("mtu_differs", "node-b", E)], "1500"),
    "FT in two networks": (_see("links.ft0.addresses", [{"address": "10.91.0.12", "prefix": 28}]),
                           [("subnet_differs", "node-b", W)], "10.91.0.0/28"),
    "management would be touched": (_both(_say("node-b", kvmft_ft_interface="eth0"), _ask(networks_manage=True)),
                                    [("networks_managed", "node-b", E)], "eth0 carries"),
    "networks that will be made": (_both(_see("links.ft0", _link()), _ask(networks_manage=True)), [], "0 finding(s)"),
    "one machine-id": (_see("machine_id", f"{11:032x}"), [("machine_id_twice", "node-b", E)], "systemd-machine-id-setup"),
    "one host name": (_see("hostname", "server11"), [("hostname_twice", "node-b", W)], "hostnamectl"),
    "other processor": (_see("cpu.model", "B"), [("cpu_differs", "node-b", W)], "virsh cpu-baseline"),
}  # fmt: skip


def test_a_good_cluster_has_no_findings() -> None:
    assert _judge(_good()) == []


@pytest.mark.parametrize("name", CASES)
def test_exactly_what_was_planted_is_found_with_its_remedy(name: str) -> None:
    change, wanted, words = CASES[name]
    cluster = _good()
    change(cluster)
    found = _judge(cluster)
    assert [(each["id"], each["host"], each["severity"]) for each in found] == wanted, found
    assert all(each["remedy"] and not each["remedy"].endswith(".") and each["need"] for each in found), found
    assert words in "\n".join(preflight.table(found))


PLAYBOOK = """
- hosts: kvmft_hosts
  gather_facts: false
  any_errors_fatal: true
  roles: [kvmft.core.preflight]
- hosts: kvmft_hosts
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: PREFLIGHT PASSED}
"""


class Play:
    """A playbook with the role alone. What is seen on the hosts comes from the inventory, as they do not exist."""

    def __init__(self, directory: Path, collections: Path) -> None:
        self.directory, self.collections = directory, collections
        self.report = directory / "report.json"
        self.inventory: Cluster = {"kvmft_hosts": {"hosts": {}}, "kvmft_arbiter": {"hosts": {
            "witness": {"kvmft_management_address": "192.0.2.13"}}}}  # fmt: skip
        for name, each in _good()["hosts"].items():
            seen = each["seen"]
            seen["free"] = {}
            self.inventory["kvmft_hosts"]["hosts"][name] = {
                **each["variables"], "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
                "kvmft_preflight_facts": seen, "kvmft_preflight_report": str(self.report),
            }  # fmt: skip

    def host(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.inventory["kvmft_hosts"]["hosts"][name]
        return found

    def run(self, *arguments: str) -> tuple[int, str]:
        (self.directory / "inventory.json").write_text(json.dumps(self.inventory))
        (self.directory / "play.yml").write_text(PLAYBOOK)
        done = subprocess.run(
            [str(PROGRAM), "-i", "inventory.json", "play.yml", *arguments], cwd=self.directory, capture_output=True,
            text=True, timeout=240, check=False,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.collections), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_HOME": str(self.directory / "home"), "ANSIBLE_LOCAL_TEMP": str(self.directory / "tmp")},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def play(tmp_path: Path, collections: Path) -> Play:
    return Play(tmp_path, collections)


def test_a_good_inventory_passes_and_the_report_says_so(play: Play) -> None:
    code, output = play.run("--check")
    assert code == 0 and "PREFLIGHT PASSED" in output and "changed=0" in output, output
    report = json.loads(play.report.read_text())
    assert report["ok"] and report["findings"] == [] and report["hosts"] == ["node-a", "node-b"]


def test_three_planted_faults_are_exactly_three_in_table_and_report(play: Play) -> None:
    play.host("node-a")["kvmft_ft_address"] = ""
    play.host("node-b")["kvmft_preflight_facts"]["memory_mib"] = 512
    play.host("node-b")["kvmft_preflight_facts"]["links"]["mig0"]["mtu"] = 1400
    # The MTU is also smaller than the peer's, of which nothing is to be heard here; a warning stops nothing.
    play.host("node-a")["kvmft_preflight_ignore"] = ["mtu_differs"]
    play.host("node-b")["kvmft_preflight_facts"]["cpu"]["kvm"] = False
    code, output = play.run()
    assert code != 0 and "PREFLIGHT PASSED" not in output and output.count("fatal:") == 1, output
    assert "kvmft preflight: 3 finding(s), 1 warning(s), 1 ignored; nothing was changed." in output
    report = json.loads(play.report.read_text())
    found = {each["id"]: each for each in report["findings"] if each["severity"] == "error"}
    assert sorted(found) == ["memory", "migration_mtu", "variable_missing"] and not report["ok"]
    for each in found.values():
        assert each["remedy"] in output.replace('\\"', '"') and each["host"] in ("inventory", "node-b")
    assert [each["id"] for each in report["ignored"]] == ["mtu_differs"]
    assert "changed=0" in output and "changed=1" not in output


def test_real_hosts_are_looked_at_and_one_that_does_not_answer_is_a_finding(play: Play) -> None:
    for name in ("node-a", "node-b"):
        del play.host(name)["kvmft_preflight_facts"]
        play.host(name)["kvmft_preflight_fail"] = False
        play.host(name)["kvmft_arbiter"] = {"type": "file", "directory": "/proc"}
    play.inventory["kvmft_arbiter"]["hosts"] = {}
    play.host("node-b").update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    __, output = play.run()
    print(output)
    report = json.loads(play.report.read_text())
    found = [(each["id"], each["host"]) for each in report["findings"]]
    assert ("not_examined", "node-b") in found and ("not_examined", "node-a") not in found, output
    assert ("ft_interface", "node-a") in found and not any(each[0].startswith("directory") for each in found)


def test_the_probe_says_what_this_machine_is() -> None:
    done = subprocess.run([sys.executable, "-", "--free", "/no/such/folder", "/proc", "--mount", "/proc"],
                          stdin=PROBE.open("rb"), capture_output=True, check=True, timeout=60)  # fmt: skip
    seen = json.loads(done.stdout)
    assert seen["kernel"]["release"] == os.uname().release
    assert seen["cpu"]["architecture"] == os.uname().machine and seen["cpu"]["count"] == os.cpu_count()
    assert seen["links"]["lo"]["addresses"][0]["address"] == "127.0.0.1"
    assert seen["mount"]["target"] == "/proc" and seen["mount"]["fstype"] == "proc"
    assert seen["free"]["/no/such/folder"]["mount"] == "/" and not seen["free"]["/no/such/folder"]["exists"]
    assert seen["memory_mib"] > 100 and seen["os"]["id"]


def test_preflight_is_the_first_thing_that_site_does() -> None:
    first = (ROOT / "playbooks" / "site.yml").read_text().split("- role:", 1)[1]
    assert first.split()[0] == "kvmft.core.preflight"
