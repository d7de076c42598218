"""The documentation site is built without a warning, and has a page for everything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.lab import docs
from tests.lab.lab import ROOT


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return docs.build(tmp_path_factory.mktemp("docs")).parent


class Links(HTMLParser):
    """Targets of links, and anchors, of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.targets.append(str(given["href"]))
        if given.get("id"):
            self.anchors.add(str(given["id"]))


def test_modules_roles_and_playbooks_have_their_pages(html: Path) -> None:
    for module in (ROOT / "plugins" / "modules").glob("*.py"):
        assert (html / "collection" / f"{module.stem}_module.html").is_file()
    for role in (ROOT / "roles").iterdir():
        assert (html / "collection" / f"{role.name}_role.html").is_file()
    playbooks = (html / "playbooks.html").read_text()
    for playbook in (ROOT / "playbooks").glob("*.yml"):
        assert f"kvmft.core.{playbook.stem}" in playbooks


def test_every_link_within_the_site_leads_somewhere(html: Path) -> None:
    pages = {path: Links() for path in html.rglob("*.html")}
    for path, links in pages.items():
        links.feed(path.read_text())
    dead = []
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = goal.is_file() and (not parts.fragment or goal.suffix != ".html"
                                        or unquote(parts.fragment) in pages[goal].anchors)  # fmt: skip
            if not found:
                dead.append(f"{path.relative_to(html)}: {target}")
    assert dead == []


def test_every_link_to_a_file_of_the_repository_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_names_every_playbook_and_role() -> None:
    readme = (ROOT / "README.md").read_text()
    names = [path.stem for path in (ROOT / "playbooks").glob("*.yml")]
    names += [path.name for path in (ROOT / "roles").iterdir()]
    assert sorted(name for name in names if f"`{name}`" not in readme) == []
