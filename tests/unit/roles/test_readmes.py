"""Every role's README, defaults and argument specification say the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import role_readmes

NAMES = sorted(path.name for path in role_readmes.ROLES.iterdir() if path.is_dir())


def specification(role: str) -> dict[str, Any]:
    path = role_readmes.ROLES / role / "meta" / "argument_specs.yml"
    found: dict[str, Any] = yaml.safe_load(path.read_text())["argument_specs"]["main"]
    return found


def test_no_readme_is_stale() -> None:
    assert [str(path) for path in role_readmes.stale()] == [], (
        "run python -m tests.tools.role_readmes --write"
    )


@pytest.mark.parametrize("role", NAMES)
def test_every_default_is_specified_with_the_same_value(role: str) -> None:
    path = role_readmes.ROLES / role / "defaults" / "main.yml"
    defaults = yaml.safe_load(path.read_text()) or {}
    options = specification(role)["options"]
    assert sorted(set(defaults) - set(options)) == []
    differing = {
        name: (value, options[name].get("default"))
        for name, value in defaults.items()
        if "{{" not in str(value) and value != options[name].get("default")
    }
    # Longer lists are told once, in defaults/main.yml.
    assert {name: each for name, each in differing.items() if not isinstance(each[0], list)} == {}


@pytest.mark.parametrize("role", NAMES)
def test_every_variable_has_a_type_and_a_meaning(role: str) -> None:
    def lacking(options: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for name, option in options.items():
            text = " ".join(role_readmes.paragraphs(option.get("description")))
            if "type" not in option or not text.endswith((".", "?", ")")):
                found.append(prefix + name)
            found += lacking(option.get("options", {}), f"{prefix}{name}.")
        return found

    spec = specification(role)
    assert spec.get("short_description")
    assert lacking(spec["options"]) == []


def test_a_changed_specification_makes_the_readme_stale_and_writing_mends_it(
    tmp_path: Path,
) -> None:
    role = tmp_path / "storage"
    shutil.copytree(role_readmes.ROLES / "storage", role)
    assert role_readmes.stale(tmp_path) == []
    path = role / "meta" / "argument_specs.yml"
    path.write_text(path.read_text().replace("kvmft_storage_min_free_mb", "kvmft_storage_least_mb"))
    assert role_readmes.main(False, tmp_path) == 1
    assert role_readmes.main(True, tmp_path) == 0
    assert role_readmes.main(False, tmp_path) == 0
    assert "`kvmft_storage_least_mb`" in (role / "README.md").read_text()


def test_what_is_written_by_hand_stays(tmp_path: Path) -> None:
    role = tmp_path / "pki"
    shutil.copytree(role_readmes.ROLES / "pki", role)
    (role / "README.md").write_text(
        "# By hand\n\n<!-- variables: begin -->\nbefore this\n<!-- variables: end -->\nAlso by hand\n"
    )
    role_readmes.main(True, tmp_path)
    text = (role / "README.md").read_text()
    assert (
        text.startswith("# By hand\n")
        and text.endswith("\nAlso by hand\n")
        and "before this" not in text
    )
    (role / "README.md").unlink()
    role_readmes.main(True, tmp_path)
    assert (role / "README.md").read_text().startswith("# kvmft.core.pki\n")


def test_markup_of_ansible_becomes_markdown() -> None:
    said = role_readmes.markdown(
        "V(absent), O(kvmft_x), C({type: file}), M(a.b.c), L(text,https://x)"
    )
    assert said == "`absent`, `kvmft_x`, `{type: file}`, `a.b.c`, [text](https://x)"
