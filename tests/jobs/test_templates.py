"""Every job template of the catalogue, run by ansible-runner as AWX runs a job, on a lab as the scenarios have it.

A job gets what AWX gives it: a checkout as project, an inventory without credentials, the SSH key and the
CA from files, and the answers of its survey, here the defaults. The collection is the one that the image
of awx/execution-environment.yml has: installed from the tarball, without the sources of the runtime.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import guests, molecule, release, snapshot
from tests.lab.lab import ROOT
from tests.lab.molecule import GUEST, Place

TEMPLATES: dict[str, dict[str, Any]] = {
    template["name"]: template
    for template in yaml.safe_load((ROOT / "awx" / "catalogue.yml").read_text())["kvmft_awx_templates"]
}
ORDER = (
    "kvmft site", "kvmft verify", "kvmft observe", "kvmft enable", "kvmft move secondary",
    "kvmft drill planned", "kvmft drill unplanned", "kvmft drill test", "kvmft upgrade",
    "kvmft rotate certificates", "kvmft drain host", "kvmft disable", "kvmft uninstall",
)  # fmt: skip
"""As an operator would: each finds what it needs, and what takes things away comes last."""
JOB_SECONDS = 240
SURVIVED = {
    "kvmft enable": "protected", "kvmft move secondary": "protected", "kvmft drill planned": "protected",
    "kvmft drill unplanned": "protected", "kvmft drill test": "protected", "kvmft upgrade": "protected",
    "kvmft rotate certificates": "protected", "kvmft disable": "disabled",
}  # fmt: skip
"""The state of the VM after these jobs."""
MOVES = ("kvmft drill planned", "kvmft drill unplanned", "kvmft drain host")
"""The jobs after which the VM may run on another host."""
NOT_TESTED = "NOT TESTED. Test failovers are not offered by kvmft on "
OURS = re.compile(
    r"(etc/libvirt/(qemu|secrets|storage|nwfilter)|var/lib/libvirt|srv|root|opt/guests|etc/prometheus"
    r"|etc/(hosts|fstab|resolv.conf))(/|:)"
)
"""What the guest, the scenarios and the fixtures here have left."""


@pytest.fixture(scope="module")
def where() -> Place:
    """Servers on which nothing is set up."""
    found = molecule.place()
    molecule.create(found)
    # The machine of the group kvmft_observe has a Prometheus.
    found.lab.run("witness", "mkdir -p /etc/prometheus")
    return found


@pytest.fixture(scope="module")
def folder(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The private data directory of the jobs."""
    made = tmp_path_factory.mktemp("jobs")
    shutil.copytree(where.collections / "ansible_collections" / "kvmft" / "core", made / "project")
    value = yaml.safe_load(where.inventory.read_text())
    for name in ("ansible_ssh_private_key_file", "kvmft_pki_dir"):
        del value["all"]["vars"][name]
    value["all"]["children"]["kvmft_observe"] = {"hosts": {"witness": {}},
                                                 "vars": {"kvmft_observe_service": ""}}  # fmt: skip
    (made / "inventory").mkdir()
    (made / "inventory" / "hosts.yml").write_text(yaml.safe_dump(value))
    (made / "env").mkdir()
    (made / "env" / "ssh_key").write_text(where.lab.key.read_text())
    (made / "env" / "ssh_key").chmod(0o600)
    (made / "env" / "envvars").write_text(yaml.safe_dump({
        "ANSIBLE_COLLECTIONS_PATH": str(where.collections), "ANSIBLE_HOST_KEY_CHECKING": "False",
        "ANSIBLE_FORKS": "5", "ANSIBLE_PIPELINING": "True",
    }))  # fmt: skip
    yield made
    shutil.rmtree(made)


def credential(where: Place, folder: Path) -> dict[str, str]:
    """What the credential type "kvmft CA" of playbooks/awx.yml injects: files, and variables that name them."""
    pki = where.lab.build / "pki"
    identity = pki / "cluster_id"
    if not identity.exists():  # before the first site run somebody has to choose one, as for AWX
        identity.write_text(f"{secrets.token_hex(16)}\n")
    injected = {"kvmft_cluster_id": identity.read_text().strip()}
    for source, variable in (("ca.key", "kvmft_pki_ca_key_file"), ("ca.pem", "kvmft_pki_ca_certificate_file")):
        path = folder / "env" / f"tmp{variable}"
        path.write_text((pki / source).read_text())
        path.chmod(0o600)
        injected[variable] = str(path)
    return injected


def launch(where: Place, folder: Path, template: dict[str, Any]) -> tuple[int, str, Path]:
    """Run one job with its survey's defaults; exit code, output, and the folder of its artifacts."""
    answers = {question["variable"]: question["default"] for question in template["survey"]}
    extra = {**answers, **(credential(where, folder) if template.get("ca") else {})}
    (folder / "env" / "extravars").write_text(json.dumps(extra))
    ident = template["name"].replace(" ", "-")
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(("ANSIBLE_", "PYTHONPATH", "MOLECULE_"))}  # fmt: skip
    done = subprocess.run(
        [str(release.BIN / "ansible-runner"), "run", str(folder), "-p", template["playbook"], "--ident", ident],
        env={**environment, "PATH": f"{release.BIN}:{environment['PATH']}"}, capture_output=True, text=True,
        timeout=JOB_SECONDS, check=False,
    )  # fmt: skip
    shutil.rmtree(folder / "kvmft-pki", ignore_errors=True)  # a job's container is thrown away
    return done.returncode, done.stdout + done.stderr, folder / "artifacts" / ident


def forget_old_definitions(where: Place) -> None:
    """What `uninstall` asks for by default: after failovers the host that the VM left still defines it."""
    for host in where.lab.servers:
        if GUEST.name not in where.lab.run(host, "virsh list --name").split():
            where.lab.run(host, f"virsh undefine {GUEST.name}", check=False)


def qemu(where: Place) -> tuple[str, str]:
    """The host that runs the VM, and the process that it is there. A checkpoint stops it for moments."""
    for __ in range(50):
        for host in where.lab.servers:
            if GUEST.name in where.lab.run(host, "virsh list --state-running --name").split():
                return host, where.lab.run(host, f"cat /run/libvirt/qemu/{GUEST.name}.pid")
    raise AssertionError(f"{GUEST.name} runs on no host")


def test_every_template_is_run() -> None:
    assert sorted(ORDER) == sorted(TEMPLATES)


@pytest.mark.parametrize("name", ORDER)
def test_the_job_ends_well_with_the_defaults_of_its_survey(where: Place, folder: Path, name: str) -> None:
    if name == "kvmft uninstall":
        forget_old_definitions(where)
    before = None
    if name != ORDER[0]:
        molecule.site(where)
        molecule.guest(where)
        before = qemu(where)
    code, output, artifacts = launch(where, folder, TEMPLATES[name])
    assert code == 0, output[-5000:]
    assert (artifacts / "status").read_text() == "successful"
    if name == "kvmft drill test":
        assert NOT_TESTED in " ".join(output.split()), output[-5000:]
    hidden = [where.canary.read_text(), *where.lab.key.read_text().splitlines()[1:-1]]
    assert [secret for secret in hidden if secret in output] == []
    assert [path.name for path in (folder / "inventory").iterdir()] == ["hosts.yml"], "it would be read as inventory"
    if name in SURVIVED:
        states = [json.loads(where.lab.run(host, f"kvmft status {GUEST.name} --json", check=False) or "{}")
                  for host in where.lab.servers]  # fmt: skip
        assert SURVIVED[name] in [state.get("state") for state in states]
    if before is not None and name not in MOVES:
        assert qemu(where) == before, "the VM was restarted, or went elsewhere"


def test_after_uninstall_the_servers_are_as_they_were(where: Place, folder: Path) -> None:
    code, output, __ = launch(where, folder, TEMPLATES["kvmft uninstall"])
    assert code == 0 and set(re.findall(r"changed=(\d+)", output)) == {"0"}, output[-5000:]
    guests.wait_up(where.lab, GUEST)
    for server, before in json.loads(where.before.read_text()).items():
        # Images are left and named, because a VM may run from its replica.
        where.lab.run(server, "rm -rf /var/lib/kvmft/images")
        found = snapshot.differences(where.lab, server, before, snapshot.take(where.lab, server))
        assert [line for line in found if OURS.match(line) is None] == [], server
