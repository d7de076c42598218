"""The catalogue for AWX: it covers the playbooks, and the loading playbook brings all of it there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import awx
from tests.lab.lab import ROOT
from tests.release.controller import Controller, controller

CATALOGUE = yaml.safe_load((ROOT / "awx" / "catalogue.yml").read_text())
TEMPLATES: list[dict[str, Any]] = CATALOGUE["kvmft_awx_templates"]
WORKFLOWS: list[dict[str, Any]] = CATALOGUE["kvmft_awx_workflows"]
FOR_THE_CONTROLLER = {"awx.yml"}
"""Playbooks that a person runs beside AWX, and not in it."""
NOT_ASKED = {
    "kvmft_wheel": "the wheel is in the image, with the collection",
    "kvmft_rotate_ca": "a job cannot put another CA into its credential",
    "kvmft_pki_remove_ca": "the CA is in a credential, and a job's copy of it is thrown away",
    "kvmft_verify_report": "a file on the controller is thrown away with the job",
}
"""What playbooks take, but no survey asks for."""


def text_of(playbook: Path) -> str:
    """The playbook, the tasks and playbooks that it includes, and the roles that it names."""
    seen: set[Path] = set()
    waiting = [playbook]
    text = ""
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        found = path.read_text()
        text += found
        waiting += [path.parent / name for name in re.findall(r"[\w./-]+\.ya?ml", found)]
        for role in re.findall(r"kvmft\.core\.(\w+)", found):
            waiting += (ROOT / "roles" / role).rglob("*.yml")
    return text


def test_every_playbook_has_one_template_and_every_template_a_playbook() -> None:
    named = sorted(template["playbook"] for template in TEMPLATES)
    there = sorted(f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml")
                   if path.name not in FOR_THE_CONTROLLER)  # fmt: skip
    assert named == there


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each["name"])
def test_what_a_survey_asks_is_read_by_the_playbook(template: dict[str, Any]) -> None:
    text = text_of(ROOT / template["playbook"])
    for question in template["survey"]:
        assert re.search(rf"\b{question['variable']}\b", text), question["variable"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each["name"])
def test_what_a_playbook_says_that_it_takes_is_asked_by_its_survey(template: dict[str, Any]) -> None:
    head = (ROOT / template["playbook"]).read_text().split("\n- ", 1)[0]
    taken = set(re.findall(r"-e (\w+)=", head)) | ({"kvmft_timeout"} if "kvmft_timeout" in head else set())
    assert taken - set(NOT_ASKED) <= {question["variable"] for question in template["survey"]}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each["name"])
def test_what_signs_or_needs_the_identity_of_the_cluster_gets_the_ca(template: dict[str, Any]) -> None:
    text = (ROOT / template["playbook"]).read_text()
    assert template.get("ca", False) == bool(re.search(r"kvmft\.core\.(pki|runtime)\b", text))


@pytest.mark.parametrize("each", [*TEMPLATES, *WORKFLOWS], ids=lambda each: each["name"])
def test_the_defaults_of_a_survey_are_answers_that_awx_takes(each: dict[str, Any]) -> None:
    for question in each["survey"]:
        assert question["required"], "a question that may stay empty would override the playbook's own default"
        match question["type"]:
            case "integer":
                assert question["min"] <= question["default"] <= question["max"]
            case "multiplechoice":
                assert question["default"] in question["choices"]
            case "text":
                assert question["min"] <= len(question["default"]) <= question["max"]
            case other:
                raise AssertionError(f"no rule for the type {other}")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda each: each["name"])
def test_a_workflow_asks_a_person_before_it_touches_a_vm(workflow: dict[str, Any]) -> None:
    nodes = {node["identifier"]: node for node in workflow["nodes"]}
    names = {template["name"] for template in TEMPLATES}
    parents: dict[str, set[str]] = {name: set() for name in nodes}
    for name, node in nodes.items():
        assert ("approval" in node) != (node.get("template") in names)
        for children in node["related"].values():
            for child in children:
                parents[child["identifier"]].add(name)

    def approved(name: str) -> bool:
        return bool(parents[name]) and all("approval" in nodes[each] or approved(each)
                                           for each in parents[name])  # fmt: skip

    harmless = {"kvmft verify"}
    touching = [name for name, node in nodes.items() if node.get("template", "kvmft verify") not in harmless]
    assert touching
    assert [name for name in touching if not approved(name)] == []


# -- loaded ---------------------------------------------------------------------------------------------


def load(at: Controller, folder: Path, *arguments: str) -> str:
    """Run the loading playbook; its output."""
    collections = folder / "collections" / "ansible_collections" / "kvmft"
    collections.mkdir(parents=True, exist_ok=True)
    link = collections / "core"
    if not link.is_symlink():
        link.symlink_to(ROOT)
    answers = folder / "answers.yml"
    answers.write_text(yaml.safe_dump({
        "kvmft_awx_scm_url": "https://git.example.org/kvmft.git",
        "kvmft_awx_image": "registry.example.org/kvmft:0.1.0",
        "kvmft_awx_pki_dir": str(folder / "pki"), "kvmft_awx_ssh_key": str(folder / "id"),
        "kvmft_awx_inventory_path": "inventory.yml", "kvmft_awx_wait": False,
    }))  # fmt: skip
    environment = {
        **os.environ, "CONTROLLER_HOST": at.url, "CONTROLLER_OAUTH_TOKEN": "token",
        "ANSIBLE_COLLECTIONS_PATH": f"{folder / 'collections'}:{awx.collections()}",
        "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_LOCALHOST_WARNING": "false",
    }  # fmt: skip
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run([str(program), "kvmft.core.awx", "-e", f"@{answers}", *arguments], env=environment,
                          capture_output=True, text=True, check=False, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Controller, Path, str]]:
    """A controller after one run of the loading playbook, the folder of the run, and its output."""
    folder = tmp_path_factory.mktemp("awx")
    (folder / "pki").mkdir()
    for name in ("ca.key", "ca.pem", "cluster_id"):
        (folder / "pki" / name).write_text(f"text of {name}\n")
    (folder / "id").write_text("text of the SSH key\n")
    with controller() as at:
        yield at, folder, load(at, folder)


def test_every_template_arrives_with_its_survey(loaded: tuple[Controller, Path, str]) -> None:
    at = loaded[0]
    there = at.named("job_templates")
    assert set(there) == {template["name"] for template in TEMPLATES}
    for template in TEMPLATES:
        found = there[template["name"]]
        assert found["playbook"] == template["playbook"]
        assert found["survey_enabled"] == bool(template["survey"])
        assert at.surveys[found["id"]]["spec"] == template["survey"]


def test_templates_that_sign_get_the_ca_and_all_get_the_ssh_key(loaded: tuple[Controller, Path, str]) -> None:
    at = loaded[0]
    names = {each["id"]: name for name, each in at.named("credentials").items()}
    for template in TEMPLATES:
        number = at.named("job_templates")[template["name"]]["id"]
        given = {names[each] for each in at.associations["job_templates", number, "credentials"]}
        assert given == {"kvmft hosts"} | ({"kvmft CA"} if template.get("ca") else set())


def test_the_ca_reaches_a_job_as_files_that_awx_names(loaded: tuple[Controller, Path, str]) -> None:
    at = loaded[0]
    injectors = at.named("credential_types")["kvmft CA"]["injectors"]
    assert injectors["file"]["template.ca_key"] == "{{ ca_key }}"
    assert injectors["extra_vars"]["kvmft_pki_ca_key_file"] == "{{ tower.filename.ca_key }}"
    assert at.named("credentials")["kvmft CA"]["inputs"]["ca_key"] == "text of ca.key\n"


def test_the_workflow_arrives_with_its_approval_and_its_order(loaded: tuple[Controller, Path, str]) -> None:
    at = loaded[0]
    for workflow in WORKFLOWS:
        number = at.named("workflow_job_templates")[workflow["name"]]["id"]
        assert at.surveys[number]["spec"] == workflow["survey"]
        nodes = {each["identifier"]: each for each in at.objects["workflow_job_template_nodes"].values()
                 if each["workflow_job_template"] == number}  # fmt: skip
        assert set(nodes) == {node["identifier"] for node in workflow["nodes"]}
        for node in workflow["nodes"]:
            for way, children in node["related"].items():
                key = ("workflow_job_template_nodes", nodes[node["identifier"]]["id"], way)
                assert at.associations[key] == [nodes[child["identifier"]]["id"] for child in children]
            if "approval" in node:
                made = nodes[node["identifier"]]["related"]["unified_job_template"]
                number_of_approval = int(made.strip("/").split("/")[-1])
                approval = at.objects["workflow_approval_templates"][number_of_approval]
                assert (approval["name"], approval["timeout"]) == (node["approval"], node["timeout"])


def test_no_secret_is_in_what_the_playbook_prints(loaded: tuple[Controller, Path, str]) -> None:
    assert "text of" not in loaded[2]


def test_loading_it_again_changes_nothing(loaded: tuple[Controller, Path, str]) -> None:
    at, folder = loaded[:2]
    at.writes.clear()
    few = [TEMPLATES[0], next(template for template in TEMPLATES if template["survey"])]
    output = load(at, folder, "-e", json.dumps({"kvmft_awx_templates": few}))
    assert re.search(r"changed=0\b", output), output[-2000:]
    assert at.writes == []
