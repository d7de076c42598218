"""The collection as it is released: its tarball, and an installation that knows nothing of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab import cli
from tests.lab.lab import ROOT

BIN = Path(sys.executable).parent


def build(folder: Path) -> Path:
    """Build the collection with the runtime's wheel in it; the tarball's path."""
    cli.build_wheel()
    shutil.rmtree(folder, ignore_errors=True)
    _galaxy(folder, "collection", "build", str(ROOT), "--output-path", str(folder))
    return next(folder.glob("kvmft-core-*.tar.gz"))


def install(tarball: Path, folder: Path) -> Path:
    """Install `tarball` into `folder`, which is emptied before; the collection's own folder in it."""
    shutil.rmtree(folder, ignore_errors=True)
    _galaxy(folder, "collection", "install", str(tarball), "--offline", "-p", str(folder))
    return folder / "ansible_collections" / "kvmft" / "core"


def _galaxy(collections: Path, *arguments: str) -> None:
    """Run ansible-galaxy, which sees no collections but those in `collections`."""
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections),
                   "ANSIBLE_HOME": str(ROOT / "build" / "ansible")}  # fmt: skip
    done = subprocess.run([str(BIN / "ansible-galaxy"), *arguments], env=environment, text=True,
                          capture_output=True, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"ansible-galaxy {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
