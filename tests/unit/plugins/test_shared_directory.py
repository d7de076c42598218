"""The runtime role's proof that all hosts look into the same directory, on real mounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT

PROGRAM = Path(sys.executable).parent / "ansible-playbook"
CLUSTER = "c" * 32


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two file systems."""
    points = tmp_path / "one", tmp_path / "two"
    for point in points:
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "kvmft-test", str(point)], check=True)
    yield points
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


def play(tmp_path: Path, collections: Path, first: Path, second: Path) -> tuple[int, str]:
    hosts = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable,
               "kvmft_arbiter": {"type": "file", "directory": str(path)}}
        for name, path in (("node-a", first), ("node-b", second))
    }  # fmt: skip
    tasks = str(ROOT / "roles" / "runtime" / "tasks" / "shared_directory.yml")
    playbook = [{
        "hosts": "all", "gather_facts": False, "any_errors_fatal": True,
        "vars": {"kvmft_cluster_id": CLUSTER, "kvmft_runtime_python": sys.executable},
        "tasks": [{"ansible.builtin.include_tasks": tasks}],
    }]  # fmt: skip
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.json").write_text(json.dumps(playbook))
    done = subprocess.run(
        [str(PROGRAM), "-i", "inventory.json", "play.json"], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
             "PYTHONPATH": str(ROOT / "runtime" / "src")},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_hosts_that_share_a_directory_pass_and_set_it_up_once(
    tmp_path: Path, collections: Path, mounts: tuple[Path, Path]
) -> None:
    code, output = play(tmp_path, collections, mounts[0], mounts[0])
    assert code == 0 and "changed=1" in output, output
    identity = (mounts[0] / "kvmft" / CLUSTER / "identity").read_text()
    code, output = play(tmp_path, collections, mounts[0], mounts[0])
    assert code == 0 and "changed=1" not in output, output
    assert (mounts[0] / "kvmft" / CLUSTER / "identity").read_text() == identity


def test_hosts_that_look_into_different_directories_are_told(
    tmp_path: Path, collections: Path, mounts: tuple[Path, Path]
) -> None:
    code, output = play(tmp_path, collections, *mounts)
    assert code != 0 and "the two do not mount the same directory" in output.replace("\n", " "), output


def test_a_directory_without_mount_is_refused_and_nothing_is_made(
    tmp_path: Path, collections: Path
) -> None:
    if os.stat(tmp_path).st_dev != os.stat("/").st_dev:
        bare = Path("/srv")
    else:
        bare = tmp_path / "bare"
        bare.mkdir()
    code, output = play(tmp_path, collections, bare, bare)
    assert code != 0 and "root file system" in output, output
    assert not (bare / "kvmft").exists()
