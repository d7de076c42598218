"""The documentation site: hand-written pages and the pages of the collection, as static HTML.

    ./dev docs          build/docs/html/index.html
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab.lab import ROOT

BIN = Path(sys.executable).parent
FOLDER = ROOT / "build" / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "roles/*/README.md")
"""Hand-written pages; they lie in the site as they do in the repository, so that their links hold."""


def build(folder: Path = FOLDER) -> Path:
    """Build the site anew; the path of its first page. RuntimeError with what a tool complained about."""
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    for pattern in PAGES:
        for page in ROOT.glob(pattern):
            target = source / page.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, target)
    for name in ("conf.py", "index.md"):
        shutil.copy(ROOT / "docs" / "site" / name, source / name)
    collection = source / "collection"
    collection.mkdir()
    _run("antsibull-docs", "collection", "--use-current", "--squash-hierarchy", "--fail-on-error",
         "--dest-dir", str(collection), "kvmft.core")  # fmt: skip
    _run("sphinx-build", "--quiet", "--fail-on-warning", "--keep-going", "-j", "2", "-b", "html",
         "-d", str(folder / "doctrees"), str(source), str(folder / "html"))  # fmt: skip
    return folder / "html" / "index.html"


def _run(program: str, *arguments: str) -> None:
    collections = ROOT / "build" / "collections"
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_HOME": str(ROOT / "build/ansible"),
                   "PATH": f"{BIN}:{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run([str(BIN / program), *arguments], env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{program} complains:\n{done.stdout[-4000:]}{done.stderr[-6000:]}")
