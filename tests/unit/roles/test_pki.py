"""roles/pki on this machine: folders are the hosts, and everything openssl says is real."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.unit.roles.harness import ROOT, Controller

FILES = ROOT / "roles" / "pki" / "files"
HOSTS = ("node-a", "witness")
PLAY = {"hosts": "all", "gather_facts": False, "any_errors_fatal": True}
ROLE = "kvmft.core.pki"


def script(name: str, *arguments: str | Path, given: str = "") -> str:
    done = subprocess.run(["sh", str(FILES / name), *map(str, arguments)], check=True, text=True,
                          capture_output=True, input=given, timeout=60)  # fmt: skip
    return done.stdout


class Cluster(Controller):
    """Hosts whose /etc/kvmft/pki are folders here."""

    def __init__(self, folder: Path) -> None:
        hosts = {name: {"kvmft_pki_host_dir": str(folder / name / "etc" / "pki"),
                        "kvmft_management_address": f"192.0.2.{number}"}
                 for number, name in enumerate(HOSTS, 11)}  # fmt: skip
        super().__init__(folder, {
            "kvmft_hosts": {"hosts": {"node-a": hosts["node-a"]}},
            "kvmft_arbiter": {"hosts": {"witness": hosts["witness"]}},
        })  # fmt: skip
        self.ca = folder / "kvmft-pki"

    def file(self, host: str, name: str) -> Path:
        return self.folder / host / "etc" / "pki" / name

    def build(self) -> None:
        """What the role makes, by its scripts alone."""
        self.ca.mkdir(mode=0o700)
        (self.ca / "cluster_id").write_text("c" * 32 + "\n")
        script("make-ca.sh", self.ca, "ca", "3650")
        for host in HOSTS:
            self.file(host, "x").parent.mkdir(parents=True, mode=0o750)
            self.file(host, "ca.pem").write_text((self.ca / "ca.pem").read_text())
            self.issue(host)

    def issue(self, host: str, days: str = "365") -> None:
        folder = self.file(host, "x").parent
        request = script("request-certificate.sh", folder, host, "same")
        signed = script("sign.sh", self.ca, days, f"DNS:{host}", given=request)
        script("use-certificate.sh", folder, "root", signed.strip())

    def check(self, host: str, names: str = "", seconds: int = 86400) -> str:
        """Why the host's certificate is not right, or an empty string."""
        done = subprocess.run(["sh", FILES / "check-certificate.sh", self.file(host, "x").parent,
                               str(seconds), names or f"DNS:{host}"], capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert (done.returncode, bool(done.stdout)) in ((0, False), (10, True)), done
        return done.stdout.strip()

    def secrets(self) -> set[str]:
        """The secret lines of every key there is, wherever it lies."""
        found = set()
        for path in self.folder.rglob("*"):
            if "collections" not in path.parts and path.is_file():
                text = path.read_text(errors="replace")
                if "PRIVATE KEY" in text:
                    found |= {line for line in text.splitlines() if line and "-----" not in line}
        return found

    def trusts(self, host: str, other: str) -> bool:
        """Whether `host` would accept the certificate of `other`."""
        done = subprocess.run(["openssl", "verify", "-CAfile", self.file(host, "ca.pem"),
                               self.file(other, "host.pem")], capture_output=True, check=False)  # fmt: skip
        return done.returncode == 0

    def all_trust_all(self) -> bool:
        return all(self.trusts(host, other) for host in HOSTS for other in HOSTS)

    def site(self, *arguments: str) -> tuple[int, str]:
        return self.play([{**PLAY, "roles": [ROLE]}], *arguments)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def built(cluster: Cluster) -> Cluster:
    cluster.build()
    return cluster


def test_check_mode_is_honest_a_second_run_changes_nothing_and_there_is_a_way_back(
    cluster: Cluster,
) -> None:
    # folder, CAs and certificate of each host; folder, identity and CA of the controller
    assert cluster.site("--check")[0] == 9
    assert not cluster.ca.exists() and not cluster.file("node-a", "host.key").exists()
    changed, output = cluster.site()
    assert changed == 9, output
    assert cluster.all_trust_all() and not cluster.check("node-a")
    assert cluster.file("node-a", "host.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in cluster.file("node-a", "x").parent.iterdir()) == [
        "ca.pem", "host.key", "host.pem"]  # fmt: skip
    changed, output = cluster.site("-e", "kvmft_pki_warn_days=5000")
    assert changed == 0
    assert "the ca certificate ends on" in output and "kvmft_rotate_ca=true" in output
    away = ("-e", "kvmft_pki_state=absent")
    cluster.active("kvmft-agent.service")
    changed, output = cluster.site(*away)
    assert changed == -1 and "Run the playbook kvmft.core.uninstall" in " ".join(output.split())
    cluster.active("kvmft-agent.service", False)
    assert cluster.site("--check", *away)[0] == 2 and cluster.file("node-a", "host.key").exists()
    assert [cluster.site(*away)[0], cluster.site(*away)[0]] == [2, 0]
    assert not any((cluster.folder / host / "etc").exists() for host in HOSTS)
    assert (cluster.ca / "ca.key").exists()


def test_another_ca_is_trusted_by_all_before_it_signs_and_no_key_is_ever_shown(
    built: Cluster,
) -> None:
    """Every run is as verbose as can be; what stands in a key's file is in none of them."""
    built.active("etcd.service")
    outputs, secrets = [], built.secrets()

    def run(entry: str, *arguments: str) -> int:
        nonlocal secrets
        tasks = [{"ansible.builtin.include_role": {"name": ROLE, "tasks_from": entry}}]
        changed, output = built.play([{**PLAY, "tasks": tasks}], "-vvv", "--diff", *arguments)
        assert changed >= 0, output
        outputs.append(output)
        secrets |= built.secrets()
        return changed

    former = (built.ca / "ca.pem").read_text()
    assert run("announce_ca") == 5  # the CA, both hosts' trust, and etcd's restart on both
    assert len(built.systemctl("restart")) == 2
    assert run("promote_ca") == 1
    assert built.all_trust_all(), "certificates of the former CA still count"
    assert run("main", "-l", "node-a") == 3  # its CAs in the other order, its certificate, etcd
    assert built.all_trust_all(), "one host is ahead of the other"
    assert run("main") == 3
    assert run("announce_ca") == 0, "an interrupted change is gone on with"
    assert run("retire_ca") == 5
    assert built.all_trust_all() and former not in built.file("node-a", "ca.pem").read_text()
    assert [built.check(host) for host in HOSTS] == ["", ""], "the next run has nothing to issue"
    before = len(built.systemctl("restart"))
    assert run("main", "-e", "kvmft_pki_renew=true") == 2, "new keys, and nothing else"
    assert len(built.systemctl("restart")) == before, "etcd reads a new certificate by itself"
    assert sorted(path.name for path in built.ca.iterdir()) == ["ca.key", "ca.pem", "cluster_id"]
    assert len(secrets) >= 3 * 6 and not [line for line in secrets for each in outputs if line in each]
    assert any("BEGIN CERTIFICATE" in each for each in outputs), "it was not verbose enough"


def test_keys_stay_where_they_were_made(built: Cluster) -> None:
    owned = [path for path in built.folder.rglob("*") if path.is_file()
             and "collections" not in path.parts and "PRIVATE KEY" in path.read_text()]  # fmt: skip
    assert sorted(path.relative_to(built.folder).as_posix() for path in owned) == [
        "kvmft-pki/ca.key", *(f"{host}/etc/pki/host.key" for host in HOSTS)]  # fmt: skip
    assert "PRIVATE" not in script("request-certificate.sh", owned[-1].parent, "witness", "new")


def test_a_certificate_that_is_not_right_is_known_with_the_reason(built: Cluster) -> None:
    key, certificate = built.file("node-a", "host.key"), built.file("node-a", "host.pem")
    assert built.check("node-a") == ""
    assert built.check("node-a", seconds=400 * 86400) == "it expires soon"
    assert built.check("node-a", names="DNS:node-a, IP Address:192.0.2.1") == "it is for DNS:node-a"
    assert built.check("absent") == "there is none"
    good = certificate.read_text()
    for wrong in ("-----BEGIN CERT", built.file("node-a", "ca.pem").read_text()[:200]):
        certificate.write_text(wrong)
        assert built.check("node-a") == "it is not of this CA, or has expired"
    certificate.write_text(good)
    key.write_text(built.file("witness", "host.key").read_text())
    assert built.check("node-a") == "it is of another key"
    built.issue("node-a")
    assert built.check("node-a") == "" and built.trusts("witness", "node-a")


def test_a_certificate_of_the_former_ca_is_not_right_though_it_is_trusted(built: Cluster) -> None:
    script("make-ca.sh", built.ca, "ca-next", "3650")
    both = (built.ca / "ca-next.pem").read_text() + (built.ca / "ca.pem").read_text()
    built.file("node-a", "ca.pem").write_text(both)
    assert built.trusts("node-a", "witness")
    assert built.check("node-a") == "it is not of this CA, or has expired"


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_change_of_the_ca_that_was_interrupted_is_brought_to_its_end(
    built: Cluster, done: int
) -> None:
    """`done`: how many of the steps of promote-ca.sh were taken before."""
    script("make-ca.sh", built.ca, "ca-next", "3650")
    former, following = (built.ca / "ca.pem").read_text(), (built.ca / "ca-next.pem").read_text()
    if done > 0:
        (built.ca / "ca-old.pem").write_text(former)
    if done > 1:
        (built.ca / "ca-next.key").rename(built.ca / "ca.key")
    if done > 2:
        (built.ca / "ca.pem").write_text(following)
    script("promote-ca.sh", built.ca)
    assert sorted(path.name for path in built.ca.iterdir()) == [
        "ca-old.pem", "ca.key", "ca.pem", "cluster_id"]  # fmt: skip
    assert (built.ca / "ca-old.pem").read_text() == former
    built.file("node-a", "ca.pem").write_text(following)
    built.issue("node-a")
    assert built.check("node-a") == ""


def test_rotation_refuses_a_part_of_the_cluster(built: Cluster) -> None:
    changed, output = built.run(ROOT / "playbooks" / "rotate_certificates.yml", "-l", "node-a")
    assert changed == -1 and "Run it without --limit" in " ".join(output.split())
