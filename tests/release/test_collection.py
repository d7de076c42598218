"""What is released: the tarball is complete, works alone, and says the same versions everywhere."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.lab import awx, release
from tests.lab.lab import ROOT

PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of collections with this one alone."""
    folder = tmp_path_factory.mktemp("collections")
    release.install(tarball, folder)
    return folder


def test_the_tarball_has_what_is_used_and_nothing_of_the_workshop(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
    version = release.galaxy()["version"]
    assert f"roles/runtime/files/kvmft-{version}-py3-none-any.whl" in names
    assert {"README.md", "LICENSE", "CHANGELOG.rst", "changelogs/changelog.yaml", "meta/runtime.yml",
            "awx/catalogue.yml", "awx/execution-environment.yml"} <= names  # fmt: skip
    for folder in ("plugins", "roles", "playbooks", "docs"):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*")
                if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".whl"}  # fmt: skip
        assert here - names == set()
    tops = {name.split("/")[0] for name in names}
    assert tops & {"runtime", "tests", "molecule", ".git", ".venv", "build", "dev", ".ci", ".config"} == set()


def test_every_playbook_is_found_and_read_where_only_the_collection_is(installed: Path) -> None:
    both = Path(f"{installed}:{awx.collections()}")
    output = release.run("ansible-playbook", "--syntax-check", *(f"kvmft.core.{name}" for name in PLAYBOOKS),
                         cwd=installed, collections=both)  # fmt: skip
    assert output.count("playbook: ") == len(PLAYBOOKS)


def test_every_module_documents_itself_there(installed: Path) -> None:
    listed = release.run("ansible-doc", "-t", "module", "-l", "kvmft.core", collections=installed)
    modules = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}
    assert set(re.findall(r"^kvmft\.core\.(\w+)", listed, re.MULTILINE)) == modules


def test_every_version_is_the_same() -> None:
    version = release.galaxy()["version"]
    init = (ROOT / "runtime" / "src" / "kvmft" / "__init__.py").read_text()
    image = (ROOT / "awx" / "execution-environment.yml").read_text()
    assert f'__version__ = "{version}"' in init
    assert set(re.findall(r"kvmft-core-([\d.]+)\.tar\.gz", image)) == {version}
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE))
    for name in ("ansible-core", "ansible-runner"):
        assert f"{name}=={pins[name]}" in image, "jobs run what is tested"


def test_the_execution_environments_definition_makes_a_build_context(tarball: Path, tmp_path: Path) -> None:
    definition = tmp_path / "awx" / "execution-environment.yml"
    definition.parent.mkdir()
    definition.write_text((ROOT / "awx" / "execution-environment.yml").read_text())
    (definition.parent / tarball.name).write_bytes(tarball.read_bytes())
    context = tmp_path / "context"
    release.run("ansible-builder", "create", "-f", str(definition), "-c", str(context), cwd=definition.parent)
    asked = yaml.safe_load((context / "_build" / "requirements.yml").read_text())["collections"]
    for each in asked:
        assert (context / "_build" / each["name"]).is_file()
    recipe = next(context.glob("*file")).read_text()
    assert "ansible-core==" in recipe
    assert "openssl" in (context / "_build" / "bindep.txt").read_text()


def test_fragments_are_sound_and_all_of_them_are_in_the_changelog(tarball: Path) -> None:
    release.run("antsibull-changelog", "lint", cwd=ROOT)
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("CHANGELOG.rst")
        assert member is not None
        changelog = " ".join(member.read().decode().split())
    sentences = [text for path in (ROOT / "changelogs" / "fragments").glob("*.yml")
                 for section in yaml.safe_load(path.read_text()).values()
                 for text in ([section] if isinstance(section, str) else section)]  # fmt: skip
    assert sentences
    missing = [text for text in sentences if " ".join(text.split()) not in changelog]
    assert missing == []
