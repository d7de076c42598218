"""The collection as it is released: its tarball, and an installation that knows nothing of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.lab import cli
from tests.lab.lab import ROOT

BIN = Path(sys.executable).parent


def galaxy() -> dict[str, Any]:
    """galaxy.yml."""
    return dict(yaml.safe_load((ROOT / "galaxy.yml").read_text()))


def stage(folder: Path) -> Path:
    """A copy of what belongs to the collection, with the runtime's wheel and CHANGELOG.rst made."""
    wheel = cli.build_wheel()
    tree = folder / "ansible_collections" / "kvmft" / "core"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=_ignored(galaxy()["build_ignore"]))
    shutil.copy(wheel, tree / "roles" / "runtime" / "files" / wheel.name)
    version = galaxy()["version"]
    released = tree / "changelogs" / "changelog.yaml"
    if not released.exists() or version not in yaml.safe_load(released.read_text())["releases"]:
        run("antsibull-changelog", "release", "--version", version, cwd=tree, collections=folder)
    return tree


def _ignored(patterns: list[str]) -> Any:
    """For shutil.copytree: what galaxy.yml leaves out, at the top or anywhere as it says."""
    top, anywhere = {each for each in patterns if "*" not in each}, [each for each in patterns if "*" in each]
    by_pattern = shutil.ignore_patterns(*anywhere, "__pycache__")

    def ignore(folder: str, names: list[str]) -> set[str]:
        left_out = set(by_pattern(folder, names))
        return left_out | (top & set(names) if Path(folder) == ROOT else set())

    return ignore


def build(folder: Path) -> Path:
    """Build the collection with the runtime's wheel in it; the tarball's path."""
    shutil.rmtree(folder, ignore_errors=True)
    tree = stage(folder / "tree")
    run("ansible-galaxy", "collection", "build", str(tree), "--output-path", str(folder))
    shutil.rmtree(folder / "tree")
    return next(folder.glob("kvmft-core-*.tar.gz"))


def install(tarball: Path, folder: Path) -> Path:
    """Install `tarball` into `folder`, which is emptied before; the collection's own folder in it."""
    shutil.rmtree(folder, ignore_errors=True)
    run("ansible-galaxy", "collection", "install", str(tarball), "--offline", "-p", str(folder), collections=folder)
    return folder / "ansible_collections" / "kvmft" / "core"


def run(program: str, *arguments: str, cwd: Path | None = None, collections: Path | None = None) -> str:
    """Run a program of the virtual environment, which sees the collections in `collections` alone; its
    output. RuntimeError with the output when it fails."""
    environment = {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_HOME": str(ROOT / "build" / "ansible"), "ANSIBLE_FORCE_COLOR": "false",
        "ANSIBLE_COLLECTIONS_PATH": str(collections or ROOT / "build" / "collections"),
    }  # fmt: skip
    done = subprocess.run([str(BIN / program), *arguments], env=environment, cwd=cwd, text=True,
                          capture_output=True, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)}:\n{done.stdout[-4000:]}{done.stderr[-6000:]}")
    return done.stdout
