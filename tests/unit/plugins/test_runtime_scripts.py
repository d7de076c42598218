"""The runtime role's scripts and its verdict on a new version, with real wheels and agents on sockets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, FakeAgent

FILES = ROOT / "roles" / "runtime" / "files"
SYSTEMCTL = '#!/bin/sh\necho "$@" >>{folder}/calls\n'


def restart(agent: FakeAgent, folder: Path, seconds: str = "5") -> subprocess.CompletedProcess[str]:
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "systemctl").write_text(SYSTEMCTL.format(folder=folder))
    (bin_ / "systemctl").chmod(0o755)
    return subprocess.run([sys.executable, str(FILES / "restart_agent.py"), seconds, str(agent.path)],
                          capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"})  # fmt: skip


def test_a_restart_waits_until_what_was_protected_is_protected_again(
    agent: FakeAgent, tmp_path: Path
) -> None:
    agent.vm.update(desired="enabled", state="protected", secondary="node-b", reason="")
    answer, asked = agent.answer, []

    def away_for_a_while(op: str, args: dict[str, Any]) -> dict[str, Any]:
        reply = answer(op, args)
        asked.append(op)
        agent.vm.update(state="protected" if len(asked) > 3 else "need_secondary", reason="a restart")
        return reply

    agent.answer = away_for_a_while  # type: ignore[method-assign]
    done = restart(agent, tmp_path)
    assert done.returncode == 0 and done.stdout == "protected again: db1\n", done.stderr
    assert asked == ["vm_list"] * 5
    assert (tmp_path / "calls").read_text() == "daemon-reload\nrestart kvmft-agent\n"


def test_a_restart_after_which_a_vm_is_not_protected_says_so(
    agent: FakeAgent, tmp_path: Path
) -> None:
    agent.vm.update(desired="enabled", state="protected", secondary="node-b", reason="")
    asked: list[int] = []
    answer = agent.answer

    def once_protected(op: str, args: dict[str, Any]) -> dict[str, Any]:
        reply = answer(op, args)
        asked.append(1)
        agent.vm.update(state="need_secondary", reason="node-b is away")
        return reply

    agent.answer = once_protected  # type: ignore[method-assign]
    done = restart(agent, tmp_path, "1")
    assert done.returncode == 1 and len(asked) > 1
    assert done.stderr == "After 1 s db1 is need_secondary (node-b is away).\n"


def test_a_restart_without_an_agent_before_starts_it_and_waits_for_its_answer(
    agent: FakeAgent, tmp_path: Path
) -> None:
    done = restart(FakeAgent(tmp_path / "nobody.sock"), tmp_path, "1")
    assert done.returncode == 1 and "the agent does not answer" in done.stderr
    agent.vm.update(desired="enabled", state="need_secondary", reason="nobody is there")
    assert restart(agent, tmp_path).stdout == "protected again: no VM was\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheels of this version, of one with another protocol, and of one that wants another configuration."""
    found = {}
    for name, path, old, new in (
        ("same", "__init__.py", "", ""),
        ("protocol", "core/wire.py", "PROTOCOL_VERSION = ", "PROTOCOL_VERSION = 90"),
        ("config", "agent/config.py", 'host = _text(value.get("host")', 'host = _text(value.get("hst")'),
        ("torn", "agent/service.py", "class Agent:", "class Agent("),
    ):
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(ROOT / "runtime", folder / "runtime",
                        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))  # fmt: skip
        source = folder / "runtime" / "src" / "kvmft" / path
        text = source.read_text()
        assert old in text
        source.write_text(text.replace(old, new, 1) if old else text)
        done = subprocess.run([sys.executable, str(FILES / "build_wheel.py"), str(folder / "runtime"),
                               str(folder)], capture_output=True, text=True, check=True)  # fmt: skip
        found[name] = Path(done.stdout.strip())
    return found


@pytest.mark.parametrize(
    ("name", "problem"),
    [("same", ""), ("protocol", ""), ("config", "host in the configuration is None"), ("torn", "SyntaxError")],
)
def test_a_wheel_is_tried_on_the_host_without_being_installed(
    wheels: dict[str, Path], tmp_path: Path, name: str, problem: str
) -> None:
    host = {"management": "192.0.2.1", "ft": "10.0.0.1", "migration": "10.1.0.1"}
    (tmp_path / "kvmft.yml").write_text(yaml.safe_dump({
        "cluster_id": "c" * 32, "host": "node-a", "storage_pool": "/x", "addresses": host,
        "peers": {"node-b": {**host, "ft": "10.0.0.2"}}, "arbiter": {"type": "none"},
        "tls": {"ca": "/x", "cert": "/x", "key": "/x"},
    }))  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(FILES / "try_wheel.py"), str(wheels[name]), str(tmp_path / "kvmft.yml")],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "runtime/src")},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["installed"]["protocol"] < 900
    if problem:
        assert found["new"] is None and problem in found["problem"]
    else:
        assert found["problem"] == "" and found["new"]["version"] == found["installed"]["version"]
        assert (found["new"]["protocol"] > 900) == (name == "protocol")


def test_a_version_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, collections: Path
) -> None:
    here = {"version": "1.2.0", "protocol": 2}
    given: dict[str, tuple[Any, dict[str, Any]]] = {
        "fits": ({"installed": here, "new": {"version": "1.10.0", "protocol": 2}, "problem": ""}, {}),
        "first": ({"installed": None, "new": here, "problem": ""}, {}),
        "older": ({"installed": here, "new": {"version": "1.1.9", "protocol": 2}, "problem": ""}, {}),
        "meant": ({"installed": here, "new": {"version": "1.1.9", "protocol": 2}, "problem": ""},
                  {"kvmft_runtime_allow_downgrade": True}),
        "other": ({"installed": here, "new": {"version": "2.0.0", "protocol": 3}, "problem": ""}, {}),
        "accepted": ({"installed": here, "new": {"version": "2.0.0", "protocol": 3}, "problem": ""},
                     {"kvmft_runtime_allow_unprotected": True}),
        "broken": ({"installed": here, "new": None, "problem": "No module named numpy"}, {}),
    }  # fmt: skip
    hosts = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable,
               "kvmft_runtime_tried": {"stdout": json.dumps(tried)}, **more}
        for name, (tried, more) in given.items()
    }  # fmt: skip
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    task = {"ansible.builtin.include_role": {"name": "kvmft.core.runtime", "tasks_from": "must_fit"}}
    play = [{"hosts": "all", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "play.json").write_text(json.dumps(play))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.json", "play.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    output = " ".join(done.stdout.split())
    failed = {name for name in hosts if f"fatal: [{name}]" in output}
    assert failed == {"older", "other", "broken"}, done.stdout + done.stderr
    for text in ("the wheel is the older 1.1.9", "no VM would be protected", "No module named numpy"):
        assert text in output
