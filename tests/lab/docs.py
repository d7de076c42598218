"""The documentation site: hand-written pages and the pages of the collection, as static HTML.

    ./dev docs          build/docs/html/index.html
"""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

from tests.lab import release
from tests.lab.lab import ROOT

FOLDER = ROOT / "build" / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.json")
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
    for name in ("conf.py", "index.md", "ansible.rst"):
        shutil.copy(ROOT / "docs" / "site" / name, source / name)
    collection = source / "collection"
    collection.mkdir()
    release.run("antsibull-docs", "collection", "--use-current", "--squash-hierarchy", "--fail-on-error",
                "--dest-dir", str(collection), "kvmft.core")  # fmt: skip
    (source / "playbooks.rst").write_text(playbooks())
    release.run("sphinx-build", "--quiet", "--fail-on-warning", "--keep-going", "-j", "2", "-b", "html",
                "-d", str(folder / "doctrees"), str(source), str(folder / "html"))  # fmt: skip
    return folder / "html" / "index.html"


def playbooks() -> str:
    """A page with what each playbook says of itself at its head."""
    lines = ["Playbooks", "=========", "", "Run one with ``ansible-playbook -i INVENTORY kvmft.core.NAME``.", ""]
    for path in sorted((ROOT / "playbooks").glob("*.yml")):
        name = path.stem
        head = list(itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()[1:]))
        text = " ".join(line.removeprefix("#").strip() for line in head)
        lines += [f".. _ansible_collections.kvmft.core.{name}_playbook:", "", name, "-" * len(name), "", _escaped(text), ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text as reStructuredText, with what a shell is given set apart."""
    text = re.sub(r"([*`|\\]|_(?=\W|$))", r"\\\1", text)
    shell = r"(ansible-playbook -i INVENTORY [\w.]+(?: -e \w+=\S+| \[[^]]*\])*|-e \w+=[\w./-]+)"
    # The command at the head is a paragraph of its own.
    return re.sub(r"^(``[^`]+``) ", r"\1\n\n", re.sub(shell, r"``\1``", text))
