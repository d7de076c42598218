"""What a probe refuses, and that it names the cause and the remedy."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmft.adapters.etcd import Etcd, EtcdConfig
from kvmft.adapters.filearbiter import FileArbiter, Files
from kvmft.adapters.mounts import mount_over, parse_mountinfo, unfit
from kvmft.adapters.reactor import Reactor
from kvmft.errors import KvmftError
from kvmft.ports import Unclear, vm_key
from tests.contract.backends import CLUSTER, EtcdBackend, FileBackend, Proxy, without_compare
from tests.contract.sides import Side, uuid
from tests.pair.harness import free_port


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdBackend]:
    made = EtcdBackend(tmp_path_factory.mktemp("etcd"))
    yield made
    made.stop()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 1 MiB, as a shared directory is one."""
    point = tmp_path / "arbiter"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "kvmft-test", str(point)], check=True)
    FileArbiter(str(point)).set_up(CLUSTER)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def probe(proxy: Proxy) -> str:
    return Etcd(EtcdConfig((proxy.url,))).probe(CLUSTER, "node-a").detail


# -- etcd ---------------------------------------------------------------------------------------------


def test_a_good_etcd_is_healthy_and_says_where_its_history_is(etcd: EtcdBackend) -> None:
    arbiter = Etcd(EtcdConfig((etcd.proxy().url,)))
    first = arbiter.probe(CLUSTER, "node-a")
    assert first.detail.startswith("etcd 3.") and first.arbiter.startswith("etcd cluster ")
    arbiter.swap(vm_key(CLUSTER, uuid()), None, b"1")
    assert arbiter.probe(CLUSTER, "node-a").revisions[""] == first.revisions[""] + 1


def test_an_arbiter_that_ignores_compare_is_refused(etcd: EtcdBackend) -> None:
    proxy = etcd.proxy()
    proxy.rewrite_request = without_compare
    with pytest.raises(KvmftError, match="applied a transaction whose condition was false") as caught:
        probe(proxy)
    assert caught.value.code == "arbiter_canary" and "cannot arbitrate" in caught.value.remedy
    assert probe(etcd.proxy()).startswith("etcd 3."), "the canary that was put does no harm later"


@pytest.mark.parametrize("version", ["3.4.20", "3.5.4", "3.3.27", "?"])
def test_versions_that_lost_acknowledged_writes_are_refused(etcd: EtcdBackend, version: str) -> None:
    proxy = etcd.proxy()
    body = json.dumps({"etcdserver": version, "etcdcluster": "3.4.0"}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    proxy.rewrite_answer = lambda answer: head + body if b"etcdserver" in answer else answer
    with pytest.raises(KvmftError, match="may lose acknowledged writes") as caught:
        probe(proxy)
    assert version in caught.value.message and "Upgrade" in caught.value.remedy


def test_one_of_several_endpoints_may_be_away_and_is_named(etcd: EtcdBackend) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    health = Etcd(EtcdConfig((dead, etcd.proxy().url))).probe(CLUSTER, "node-a")
    assert "1 of 2 do not answer" in health.detail and dead in health.detail


def test_without_any_endpoint_that_answers_it_is_one_error() -> None:
    with pytest.raises(KvmftError, match="does not answer") as caught:
        Etcd(EtcdConfig((f"http://127.0.0.1:{free_port()}",))).probe(CLUSTER, "node-a")
    assert caught.value.code == "arbiter_unreachable"


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
     b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"succeeded\": true}\n", b"nonsense\r\n\r\n", b""],
    ids=["503", "null", "without header", "no HTTP", "closed"],
)  # fmt: skip
def test_an_answer_that_is_none_is_unclear(etcd: EtcdBackend, answer: bytes) -> None:
    proxy = etcd.proxy()
    proxy.rewrite_answer = lambda _: answer
    with pytest.raises(Unclear):
        Etcd(EtcdConfig((proxy.url,))).swap(vm_key(CLUSTER, uuid()), None, b"1")


def test_an_empty_value_is_a_value(etcd: EtcdBackend) -> None:
    """This JSON leaves out what is empty, also the value of a key that has an empty one."""
    arbiter, key = Etcd(EtcdConfig((etcd.proxy().url,))), vm_key(CLUSTER, uuid())
    assert arbiter.swap(key, None, b"").succeeded
    assert arbiter.swap(key, b"x", b"y").current == b""


def test_another_etcd_at_the_same_address_halts(etcd: EtcdBackend, tmp_path: Path) -> None:
    """The proxy leads to another cluster from now on, as a changed DNS name would."""
    other = EtcdBackend(tmp_path / "other")
    try:
        proxy = etcd.proxy()
        a = Side(Reactor(), Etcd(EtcdConfig((proxy.url,))), tmp_path, "node-a", uuid())
        a.client.create()
        assert str(a.wait()) == "WON"
        proxy.target = other.server.client
        a.client.solo()
        verdict = a.wait()
        assert str(verdict) == "HALT" and "another arbiter than before" in verdict.reason
    finally:
        other.stop()


# -- file ---------------------------------------------------------------------------------------------


def test_a_good_directory_is_healthy_and_names_the_others(mounted: Path) -> None:
    arbiter = FileArbiter(str(mounted))
    assert "no other host has been here yet" in arbiter.probe(CLUSTER, "node-a").detail
    health = arbiter.probe(CLUSTER, "node-b")
    assert "tmpfs" in health.detail and "used by node-a too" in health.detail
    assert health.revisions == {}
    arbiter.swap(vm_key(CLUSTER, "vm-x"), None, b"1")
    assert arbiter.probe(CLUSTER, "node-a").revisions == {"vm-x": 1}
    left = [name for __, __, names in os.walk(mounted) for name in names]
    assert sorted(left) == ["gen-1", "identity", "node-a", "node-b"], "the canary left nothing"


class ReplacingLink(Files):
    """A file system whose link replaces, as rename does."""

    def link(self, old: str, new: str, at: int) -> None:
        try:
            os.unlink(new, dir_fd=at)
        except FileNotFoundError:
            pass
        super().link(old, new, at)


class NoLinks(Files):
    """vfat, and many network file systems."""

    def link(self, old: str, new: str, at: int) -> None:
        raise PermissionError(1, "Operation not permitted")


def test_a_file_system_whose_link_replaces_is_refused(mounted: Path) -> None:
    with pytest.raises(KvmftError, match="a second link replaced the first") as caught:
        FileArbiter(str(mounted), ReplacingLink()).probe(CLUSTER, "node-a")
    assert caught.value.code == "arbiter_canary"


def test_a_file_system_without_links_is_refused(mounted: Path) -> None:
    with pytest.raises(KvmftError, match="Operation not permitted") as caught:
        FileArbiter(str(mounted), NoLinks()).probe(CLUSTER, "node-a")
    assert caught.value.code == "arbiter_no_links" and "hard links" in caught.value.remedy


def test_a_directory_that_is_not_mounted_is_refused() -> None:
    with pytest.raises(KvmftError, match="root file system") as caught:
        FileArbiter("/srv/kvmft-arbiter-of-nobody").probe(CLUSTER, "node-a")
    assert caught.value.code == "arbiter_not_mounted"


def test_a_mounted_directory_that_was_not_set_up_is_refused(mounted: Path) -> None:
    with pytest.raises(KvmftError, match="not mounted, or was not set up") as caught:
        FileArbiter(str(mounted)).probe("e" * 32, "node-a")
    assert "kvmft.core.site" in caught.value.remedy


def test_a_read_only_directory_is_refused(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(KvmftError, match="Read-only file system") as caught:
        FileArbiter(str(mounted)).probe(CLUSTER, "node-a")
    assert caught.value.code == "arbiter_read_only"


def test_a_full_directory_is_one_clear_error_and_changes_nothing(mounted: Path, tmp_path: Path) -> None:
    arbiter, vm = FileArbiter(str(mounted)), uuid()
    a = Side(Reactor(), arbiter, tmp_path / "state", "node-a", vm)
    a.client.create()
    assert str(a.wait()) == "WON"
    key, value = vm_key(CLUSTER, vm), a.held.to_bytes()
    filler = mounted / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)
    before = sorted(str(path) for path in mounted.rglob("*"))
    with pytest.raises(KvmftError, match="the file system is full") as caught:
        arbiter.probe(CLUSTER, "node-a")
    assert caught.value.code == "arbiter_full" and "Free space" in caught.value.remedy
    with pytest.raises(Unclear, match="full, so nothing was changed"):
        arbiter.swap(key, value, b"new")
    assert arbiter.swap(key, b"other", b"new").current == value, "what is refused needs no space"
    a.client.solo()
    a.noted("the file system is full")
    after = {str(path) for path in mounted.rglob("*")} - set(before)
    assert all(path.endswith(("canary", "hosts")) for path in after), after
    filler.unlink()
    assert str(a.wait()) == "WON"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("nfs4 nas:/kvmft rw,vers=4.2,hard,proto=tcp", None),
        ("nfs4 nas:/kvmft rw,vers=4.1,hard", None),
        ("nfs4 nas:/kvmft rw,vers=4.0,hard", "arbiter_nfs_version"),
        ("nfs nas:/kvmft rw,vers=3,hard", "arbiter_nfs_version"),
        ("nfs4 nas:/kvmft rw,vers=4.2,soft", "arbiter_nfs_soft"),
        ("nfs4 nas:/kvmft rw,vers=4.2,softerr", "arbiter_nfs_soft"),
        ("nfs4 nas:/kvmft rw,vers=4.2,hard,nocto", "arbiter_nfs_soft"),
        ("ocfs2 /dev/sdb rw", None),
    ],
)
def test_mounts_that_cannot_arbitrate_are_refused(line: str, code: str | None) -> None:
    text = f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 20 0:50 / /srv/my\\040arbiter rw,relatime - {line}\n"
    mounts = parse_mountinfo(text)
    mount = mount_over(mounts, "/srv/my arbiter/kvmft")
    assert mount.point == "/srv/my arbiter"
    found = unfit(mount, "/srv/my arbiter")
    assert (found.code if found else None) == code
    assert mount_over(mounts, "/srv/my arbiters").point == "/"


def test_setting_up_twice_keeps_the_identity(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path)
    arbiter = FileArbiter(str(backend.directory))
    identity = backend.directory / "kvmft" / CLUSTER / "identity"
    before = identity.read_text()
    changed, name = arbiter.set_up(CLUSTER)
    assert not changed and identity.read_text() == before and name.removeprefix("directory ") in before


def test_a_damaged_identity_decides_nothing(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path)
    (backend.directory / "kvmft" / CLUSTER / "identity").write_text("{")
    with pytest.raises(Unclear, match="identity is missing or damaged"):
        backend.arbiter()[0].swap(vm_key(CLUSTER, "vm"), None, b"1")


@pytest.mark.parametrize("key", ["/kvmft/x/vm/../../etc", "kvmft/x/vm/y", "/kvmft/x/vm/y/z", "/kvmft//vm/y"])
def test_a_key_leads_nowhere_else(tmp_path: Path, key: str) -> None:
    with pytest.raises(KvmftError, match="no key of a VM"):
        FileBackend(tmp_path).arbiter()[0].swap(key, None, b"1")
