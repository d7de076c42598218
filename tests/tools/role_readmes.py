"""Keep every role's README.md in step with its meta/argument_specs.yml.

    python -m tests.tools.role_readmes            name the READMEs that are stale; exit code 1 if any is
    python -m tests.tools.role_readmes --write    write them

Two sections of a README are made here, each between a pair of markers: `description`, the paragraphs of
the specification, and `variables`, a table of its options. A README that does not exist is made with
both; to one without the section `variables` it is added at the end. What lies outside of the markers
is written by hand and stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "roles"
_MARKUP = re.compile(r"\b(?:C|V|O|RV|E|I|B)\(((?:[^()\\]|\\.|\([^()]*\))*)\)")
_MODULE = re.compile(r"\bM\(([^()]*)\)")
_LINK = re.compile(r"\bL\(([^(),]*),\s*([^()]*)\)")


def paragraphs(description: str | list[str] | None) -> list[str]:
    """A description as the paragraphs that it has: one where it is a text, several where it is a list."""
    if description is None:
        return []
    return [description] if isinstance(description, str) else list(description)


def markdown(text: str) -> str:
    """Ansible's markup (`C(x)`, `V(x)`, `O(x)`, `M(x)`, `L(text,url)`) as Markdown."""

    def code(found: re.Match[str]) -> str:
        return f"`{found[1].replace(chr(92), '')}`"

    text = _LINK.sub(r"[\1](\2)", text)
    return _MODULE.sub(r"`\1`", _MARKUP.sub(code, text))


def _cell(text: str) -> str:
    return markdown(" ".join(text.split())).replace("|", "\\|")


def _default(name: str, option: dict[str, Any], defaults: dict[str, Any]) -> str:
    if "default" in option:
        value = option["default"]
    elif name in defaults:
        value = defaults[name]
        if isinstance(value, str) and "{{" in value:
            return "computed"
    else:
        return ""
    if value == "":
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`".replace("|", "\\|")


def rows(
    options: dict[str, Any], defaults: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of each option; those of a dictionary follow it."""
    for name, option in options.items():
        kind = option.get("type", "str")
        if kind == "list" and option.get("elements"):
            kind = f"list of {option['elements']}"
        if option.get("required"):
            kind += ", required"
        meaning = " ".join(paragraphs(option.get("description")))
        if option.get("choices"):
            choices = ", ".join(f"`{each}`" for each in option["choices"])
            meaning = f"{meaning} One of {choices}."
        yield (
            f"`{prefix}{name}`",
            kind,
            _default(name, option, {} if prefix else defaults),
            _cell(meaning),
        )
        if option.get("options"):
            below = f"{prefix}{name}{'[]' if option.get('type') == 'list' else ''}."
            yield from rows(option["options"], {}, below)


def sections(role: Path) -> dict[str, str]:
    """What stands between the markers of a role's README, by the markers' name."""
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"][
        "main"
    ]
    path = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
    table = ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
    table += [f"| {' | '.join(each)} |" for each in rows(spec.get("options", {}), defaults)]
    text = paragraphs(spec.get("description")) or [f"{spec['short_description']}."]
    return {
        "description": "\n\n".join(markdown(each.strip()) for each in text),
        "variables": "## Variables\n\n" + "\n".join(table),
    }


def fresh(role: Path) -> str:
    """The README as it should be."""
    path = role / "README.md"
    made = sections(role)
    text = (
        path.read_text()
        if path.exists()
        else f"# kvmft.core.{role.name}\n\n{_marked('description', '')}"
    )
    if _marker("variables", "begin") not in text:
        text = f"{text.rstrip()}\n\n{_marked('variables', '')}"
    for name, content in made.items():
        begin, end = _marker(name, "begin"), _marker(name, "end")
        if begin in text:
            before, rest = text.split(begin, 1)
            text = f"{before}{_marked(name, content)}{rest.split(end, 1)[1].removeprefix(chr(10))}"
    return text


def _marker(name: str, edge: str) -> str:
    return f"<!-- {name}: {edge} -->"


def _marked(name: str, content: str) -> str:
    return f"{_marker(name, 'begin')}\n{content}\n{_marker(name, 'end')}\n"


def stale(roles: Path = ROLES) -> list[Path]:
    """READMEs that are not as they should be."""
    return [
        role / "README.md"
        for role in sorted(roles.iterdir())
        if (role / "meta" / "argument_specs.yml").exists()
        and (not (role / "README.md").exists() or (role / "README.md").read_text() != fresh(role))
    ]


def main(write: bool, roles: Path = ROLES) -> int:
    """Write what is stale, or name it; the exit code."""
    found = stale(roles)
    for path in found:
        if write:
            path.write_text(fresh(path.parent))
        print(
            f"{path}: {'written' if write else 'stale; run python -m tests.tools.role_readmes --write'}"
        )
    return 1 if found and not write else 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
