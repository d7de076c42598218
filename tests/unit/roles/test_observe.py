"""roles/observe: the role itself on this machine, and its rules against promtool and real metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.agent.test_metrics import made, text_of

ROOT = Path(__file__).parents[3]
PLAYBOOK = """
- hosts: prometheus
  gather_facts: false
  roles: [kvmft.core.observe]
"""


class Role:
    """Runs the role against a folder of this machine; `changed` and `failed` tell how it went."""

    def __init__(self, directory: Path) -> None:
        self.rules = directory / "etc" / "kvmft.rules.yml"
        self.targets = directory / "etc" / "kvmft.targets.json"
        self.directory = directory
        (directory / "play.yml").write_text(PLAYBOOK)
        host = {"kvmft_management_address": "10.90.0.11"}
        inventory = {"all": {
            "vars": {
                "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
                "kvmft_observe_rules_file": str(self.rules), "kvmft_observe_service": "",
                "kvmft_observe_targets_file": str(self.targets),
                "kvmft_observe_grafana_providers": str(directory / "etc" / "providers"),
                "kvmft_observe_dashboard_dir": str(directory / "dashboards"),
                "kvmft_observe_grafana_service": "",
            },
            "children": {
                "prometheus": {"hosts": {"here": {}}},
                "kvmft_hosts": {"hosts": {
                    "node-a": host,
                    "node-b": {"kvmft_management_address": "fd00::12", "kvmft_metrics_port": 9999},
                    "node-c": {**host, "kvmft_metrics_port": 0},
                    "node-d": {**host, "kvmft_metrics_address": "10.99.0.14"},
                }},
            },
        }}  # fmt: skip
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
        collections = directory / "collections" / "ansible_collections" / "kvmft"
        collections.mkdir(parents=True)
        (collections / "core").symlink_to(ROOT)

    def run(self, *arguments: str) -> tuple[int, str]:
        """(number of changed tasks, or -1 when it failed; output)."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.yml", "play.yml",
             *arguments],
            cwd=self.directory, capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
                 "ANSIBLE_HOME": str(self.directory / "home"), "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        found = re.search(r"changed=(\d+)", done.stdout)
        changed = int(found.group(1)) if done.returncode == 0 and found else -1
        return changed, done.stdout + done.stderr


@pytest.fixture
def role(tmp_path: Path) -> Role:
    found = Role(tmp_path)
    found.rules.parent.mkdir()
    return found


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Role:
    """What the role places where there is no Grafana, for a cluster of its own name."""
    made = Role(tmp_path_factory.mktemp("placed"))
    made.rules.parent.mkdir()
    changed, output = made.run("-e", "kvmft_observe_cluster=blue")
    assert changed == 2 and "No dashboard is placed on here" in output, output
    return made


@pytest.fixture(scope="module")
def rules(placed: Role) -> Path:
    """The rules file as the role places it."""
    return placed.rules


def test_check_mode_is_honest_a_second_run_changes_nothing_and_there_is_a_way_back(
    role: Role,
) -> None:
    providers, dashboards = role.rules.parent / "providers", role.directory / "dashboards"
    providers.mkdir()
    away = ("-e", "kvmft_observe_state=absent")
    assert role.run("--check")[0] == 5
    assert not role.rules.exists() and not role.targets.exists() and not dashboards.exists()
    assert [role.run()[0], role.run()[0], role.run("--check")[0]] == [5, 0, 0]
    provider = yaml.safe_load((providers / "kvmft.yaml").read_text())["providers"][0]
    found = list(Path(provider["options"]["path"]).glob("*.json"))
    assert [json.loads(path.read_text())["uid"] for path in found] == ["kvmft"]
    assert role.run("--check", *away)[0] == 4 and role.rules.exists()
    assert [role.run(*away)[0], role.run(*away)[0]] == [4, 0]
    assert not role.rules.exists() and not role.targets.exists()
    assert not dashboards.exists() and list(providers.iterdir()) == []


def test_targets_are_every_hosts_metrics(placed: Role) -> None:
    found = {each["labels"]["kvmft_host"]: each for each in json.loads(placed.targets.read_text())}
    assert {name: each["targets"] for name, each in found.items()} == {
        "node-a": ["10.90.0.11:7409"],
        "node-b": ["[fd00::12]:9999"],
        "node-d": ["10.99.0.14:7409"],
    }
    assert {each["labels"]["kvmft_cluster"] for each in found.values()} == {"blue"}


def test_without_the_folder_it_stops_with_one_sentence(tmp_path: Path) -> None:
    changed, output = Role(tmp_path).run()
    assert changed == -1
    assert "Install Prometheus there, or set kvmft_observe_rules_file" in " ".join(output.split())


def test_rules_that_promtool_refuses_are_not_placed(role: Role) -> None:
    changed, output = role.run("-e", "kvmft_observe_unprotected_minutes=-1")
    assert changed == -1, output
    assert not role.rules.exists()


def test_promtool_accepts_the_rules(rules: Path) -> None:
    done = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 13 rules found" in done.stdout


def served_by_agents(folder: Path) -> set[str]:
    a, vm = made(folder)
    vm.worker = object()
    return set(re.findall(r"^# TYPE (\S+)", text_of(a), re.MULTILINE)) | {"kvmft_peer_up"}


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression of PromQL names, without those of labels and sets."""
    names = re.findall(r"\bkvmft_(?!cluster\b|host\b)\w+", expression)
    return {re.sub(r"_bucket$", "", name) for name in names}


def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "roles/observe/files/dashboard.json").read_text()))


def expressions() -> list[str]:
    """Every expression of the dashboard: panels, variables and annotations."""
    board = dashboard()
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    found += [each["query"]["query"] for each in board["templating"]["list"]
              if each["type"] == "query"]  # fmt: skip
    return found + [each["expr"] for each in board["annotations"]["list"]]


def test_the_dashboard_shows_every_metric_of_agents_and_no_other(tmp_path: Path) -> None:
    used = set().union(*(metrics_of(each) for each in expressions()))
    assert used == served_by_agents(tmp_path)


def test_prometheus_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    values = {"$__rate_interval": "1m", "$cluster": "c", "$vm": "db1"}
    rows = []
    for number, each in enumerate(expressions()):
        if not each.startswith("label_values"):
            for name, value in values.items():
                each = each.replace(name, value)
            rows.append({"record": f"kvmft:{number}", "expr": each})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "d", "rules": rows}]}))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], text=True,
                          capture_output=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(rows)} rules found" in done.stdout and len(rows) > 20


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    cells = [(x, y) for each in panels for where in [each["gridPos"]]
             for x in range(where["x"], where["x"] + where["w"])
             for y in range(where["y"], where["y"] + where["h"])]  # fmt: skip
    assert len(cells) == len(set(cells)) and max(x for x, __ in cells) < 24


def test_every_metric_of_the_rules_is_one_that_agents_serve(rules: Path, tmp_path: Path) -> None:
    served = served_by_agents(tmp_path)
    used = set()
    for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]:
        used |= metrics_of(rule["expr"])
    assert len(used) >= 10 and used <= served, used - served


def series(text: str, values: str) -> dict[str, str]:
    return {"series": text, "values": values}


def alerts(name: str, at: str, *labels: dict[str, str]) -> dict[str, Any]:
    return {"eval_time": at, "alertname": name,
            "exp_alerts": [{"exp_labels": each} for each in labels]}  # fmt: skip


A = 'kvmft_cluster="c",kvmft_host="node-a",instance="a:7409",vm="db1"'
B = 'kvmft_cluster="c",kvmft_host="node-b",instance="b:7409",vm="db1"'
HOST = 'kvmft_cluster="c",kvmft_host="node-a",instance="a:7409"'
ON_A = {"kvmft_cluster": "c", "kvmft_host": "node-a", "instance": "a:7409"}
BUCKETS = ("0.02", "0.1", "+Inf")


def pauses(fast: int, slow: int) -> list[dict[str, str]]:
    rates = (fast, fast + slow, fast + slow)
    return [series(f'kvmft_vm_pause_seconds_bucket{{{A},le="{le}"}}', f"0+{rate}x80")
            for le, rate in zip(BUCKETS, rates, strict=True)]  # fmt: skip


CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, Any]]]] = {
    "two active": (
        [series(f"kvmft_vm_running_here{{{A}}}", "1x40"),
         series(f"kvmft_vm_running_here{{{B}}}", "0x10 1x30")],
        [alerts("KvmftMoreThanOneActive", "2m30s"),
         alerts("KvmftMoreThanOneActive", "5m",
                {"severity": "critical", "kvmft_cluster": "c", "vm": "db1"})],
    ),
    "a power cut leaves the last scrape of the dead host for one interval": (
        [series(f"kvmft_vm_running_here{{{A}}}", "1x10 stale"),
         series(f"kvmft_vm_running_here{{{B}}}", "0x9 1x30")],
        [alerts("KvmftMoreThanOneActive", at) for at in ("2m30s", "2m45s", "3m", "4m", "5m")],
    ),
    "the same name in two clusters": (
        [series(f"kvmft_vm_running_here{{{A}}}", "1x40"),
         series('kvmft_vm_running_here{kvmft_cluster="d",vm="db1"}', "1x40")],
        [alerts("KvmftMoreThanOneActive", "5m")],
    ),
    "unprotected": (
        [series(f"kvmft_vm_protection_wanted{{{A}}}", "1x80"),
         series(f"kvmft_vm_protected{{{A}}}", "1x10 0x70"),
         series(f"kvmft_vm_protection_wanted{{{B}}}", "0x80"),
         series(f"kvmft_vm_protected{{{B}}}", "0x80")],
        [alerts("KvmftUnprotected", "12m"),
         alerts("KvmftUnprotected", "14m", {**ON_A, "severity": "warning", "vm": "db1"})],
    ),
    "suspended on request": (
        [series(f"kvmft_vm_protection_wanted{{{A}}}", "0x80"),
         series(f"kvmft_vm_protected{{{A}}}", "0x80")],
        [alerts("KvmftUnprotected", "20m")],
    ),
    "arbiter, peer, libvirt and agent down": (
        [series(f'kvmft_arbiter_up{{{HOST},type="etcd"}}', "1x4 0x20"),
         series(f'kvmft_peer_up{{{HOST},peer="node-b"}}', "0x20"),
         series(f"kvmft_libvirt_up{{{HOST}}}", "0x20"), series(f"up{{{HOST}}}", "0x20"),
         series('up{job="other"}', "0x20")],
        [alerts("KvmftArbiterDown", "1m"),
         alerts("KvmftArbiterDown", "3m", {**ON_A, "severity": "critical", "type": "etcd"}),
         alerts("KvmftPeerDown", "2m", {**ON_A, "severity": "warning", "peer": "node-b"}),
         alerts("KvmftLibvirtDown", "2m", {**ON_A, "severity": "warning"}),
         alerts("KvmftAgentDown", "2m", {**ON_A, "severity": "critical"})],
    ),
    "old commit": (
        [series(f"kvmft_vm_last_commit_age_seconds{{{A}}}", "0.02x10 6+15x20"),
         series(f"kvmft_vm_protected{{{A}}}", "1x40"),
         series(f"kvmft_vm_last_commit_age_seconds{{{B}}}", "600x40"),
         series(f"kvmft_vm_protected{{{B}}}", "0x40")],
        [alerts("KvmftCommitAge", "2m30s"),
         alerts("KvmftCommitAge", "4m", {**ON_A, "severity": "critical", "vm": "db1"})],
    ),
    "beacons": (
        [series(f"kvmft_vm_beacons_missed{{{A}}}", "0x8 1x40"), series(f"kvmft_vm_beacons_missed{{{B}}}", "0x48")],
        [alerts("KvmftBeaconsMissed", "4m"),
         alerts("KvmftBeaconsMissed", "12m", {**ON_A, "severity": "warning", "vm": "db1"})],
    ),
    "certificates": (
        [series(f'kvmft_certificate_expiry_seconds{{{HOST},certificate="host"}}', "2160000x20"),
         series(f'kvmft_certificate_expiry_seconds{{{HOST},certificate="ca"}}', "86400x20"),
         series('kvmft_certificate_expiry_seconds{certificate="good"}', "31536000x20")],
        [alerts("KvmftCertificateExpiring", "1m",
                {**ON_A, "severity": "warning", "certificate": "host"},
                {**ON_A, "severity": "critical", "certificate": "ca"}),
         alerts("KvmftCertificateEndsToday", "1m")],
    ),
    "a certificate's last day": (
        [series(f'kvmft_certificate_expiry_seconds{{{HOST},certificate="host"}}', "86399x20")],
        [alerts("KvmftCertificateEndsToday", "1m",
                {**ON_A, "severity": "critical", "certificate": "host"})],
    ),
    "long pauses": (
        pauses(fast=90, slow=10),
        [alerts("KvmftPausesTooLong", "4m"),
         alerts("KvmftPausesTooLong", "15m", {**ON_A, "severity": "warning", "vm": "db1"})],
    ),
    "short pauses": (pauses(fast=1000, slow=1), [alerts("KvmftPausesTooLong", "15m")]),
    "sync without progress": (
        [series(f'kvmft_vm_state{{{A},state="starting"}}', "1x120"),
         series(f"kvmft_vm_sync_ratio{{{A}}}", "0+0.01x20 0.2x100")],
        [alerts("KvmftReplicaSyncStuck", "10m"),
         alerts("KvmftReplicaSyncStuck", "28m",
                {**ON_A, "severity": "warning", "vm": "db1", "state": "starting"})],
    ),
    "sync that goes on": (
        [series(f'kvmft_vm_state{{{A},state="starting"}}', "1x120"),
         series(f"kvmft_vm_sync_ratio{{{A}}}", "0+0.001x120")],
        [alerts("KvmftReplicaSyncStuck", "28m")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_alerts_fire_when_they_should_and_only_then(rules: Path, tmp_path: Path, name: str) -> None:
    given, wanted = CASES[name]
    stripped = yaml.safe_load(rules.read_text())
    for rule in stripped["groups"][0]["rules"]:
        del rule["annotations"]  # promtool compares them whole; labels and moments are of interest
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(stripped))
    test = {"rule_files": ["rules.yml"], "evaluation_interval": "15s",
            "tests": [{"interval": "15s", "input_series": given, "alert_rule_test": wanted}]}  # fmt: skip
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, text=True,
                          capture_output=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
