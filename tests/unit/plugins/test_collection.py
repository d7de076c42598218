"""The collection as Ansible sees it: names, groups, documentation, and what it needs to be installed."""

from __future__ import annotations

import ast
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

PLUGINS = ROOT / "plugins"
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))
CONTROL = "kvmft.core.control"
NEEDED = ("meta", "plugins", "roles", "playbooks")


def constants(path: Path) -> dict[str, str]:
    """The texts DOCUMENTATION, EXAMPLES and RETURN of a plugin, without importing it."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                found[node.targets[0].id] = node.value.value
    return found


def fragment() -> dict[str, Any]:
    tree = ast.parse((PLUGINS / "doc_fragments" / "control.py").read_text())
    (made,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    (text,) = [node.value.value for node in made.body
               if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]  # fmt: skip
    found: dict[str, Any] = yaml.safe_load(str(text))
    return found


def documentation(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(constants(PLUGINS / "modules" / f"{name}.py")["DOCUMENTATION"])
    return found


def test_the_action_group_has_every_module_that_asks_the_agent_and_nothing_else() -> None:
    asking = [name for name in MODULES
              if CONTROL in documentation(name).get("extends_documentation_fragment", [])]  # fmt: skip
    assert set(asking) >= {name for name in MODULES if name.startswith("ft_")}
    groups = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]
    assert {name: sorted(members) for name, members in groups.items()} == {"ft": asking}
    assert fragment()["attributes"]["action_group"]["membership"] == ["kvmft.core.ft"]


def test_what_is_not_for_others_to_import_says_so() -> None:
    for folder in ("module_utils", "plugin_utils"):
        names = [path.name for path in (PLUGINS / folder).glob("*.py")]
        assert names and all(name.startswith("_") for name in names), names


@pytest.mark.parametrize("name", MODULES)
def test_a_module_documents_modes_examples_and_results(name: str) -> None:
    texts, told = constants(PLUGINS / "modules" / f"{name}.py"), documentation(name)
    assert told["module"] == name and yaml.safe_load(texts["RETURN"])
    modes = {mode: told["attributes"][mode]["support"] for mode in ("check_mode", "diff_mode")}
    options = dict(told.get("options") or {})
    if CONTROL in told.get("extends_documentation_fragment", []):
        looks = name.endswith("_info")
        assert modes == {"check_mode": "full", "diff_mode": "none" if looks else "full"}
        options.update(fragment()["options"])
    used = [task[f"kvmft.core.{name}"] for task in yaml.safe_load(texts["EXAMPLES"])
            if f"kvmft.core.{name}" in task]  # fmt: skip
    assert used, "no example uses it"
    for given in used:
        assert set(given) <= set(options), given
        required = {option for option, each in options.items() if each.get("required")}
        assert required <= set(given), given


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the collection is there with only what has to be there."""
    root = tmp_path_factory.mktemp("installed")
    target = root / "ansible_collections" / "kvmft" / "core"
    for name in NEEDED:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "ANSIBLE_COLLECTIONS_PATH": str(root), "ANSIBLE_HOME": str(root / "home"),
            "ANSIBLE_LOCALHOST_WARNING": "False"}  # fmt: skip


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], env=environment, check=False,
        cwd=environment["ANSIBLE_COLLECTIONS_PATH"], capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_modules_and_plugins_are_documented_where_only_the_collection_is(
    installed: dict[str, str],
) -> None:
    shown = json.loads(run(installed, "ansible-doc", "--json", *(f"kvmft.core.{name}" for name in MODULES)))
    assert sorted(shown) == [f"kvmft.core.{name}" for name in MODULES]
    (inventory,) = json.loads(
        run(installed, "ansible-doc", "--json", "-t", "inventory", "kvmft.core.ft_inventory")
    ).values()
    assert {"compose", "cache", "hosts"} <= set(inventory["doc"]["options"])


def test_modules_run_where_only_the_collection_is(installed: dict[str, str], agent: FakeAgent) -> None:
    args = json.dumps({"socket_path": str(agent.path)})
    said = run({**installed, "ANSIBLE_PYTHON_INTERPRETER": sys.executable}, "ansible", "-c", "local",
               "localhost", "-m", "kvmft.core.ft_host_info", "-a", args)  # fmt: skip
    assert '"host": "node-a"' in said and ("host_info", {}) in agent.requests


def test_playbooks_are_read_where_only_the_collection_is(installed: dict[str, str]) -> None:
    """`awx` alone is about another collection, which whoever uses it has."""
    names = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml") if path.stem != "awx")
    run(installed, "ansible-playbook", "-i", "localhost,", "--syntax-check",
        *(f"kvmft.core.{name}" for name in names))  # fmt: skip
