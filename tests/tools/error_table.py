"""The table of errors in docs/troubleshooting.md, made from the places in the code that raise them.

    python -m tests.tools.error_table [--write]

Without --write it says whether the page is fresh: exit code 1 and the difference when it is not.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvmft.core import admission, compliance
from tests.lab.lab import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- errors: begin -->\n", "<!-- errors: end -->\n"
RAISED = ("KvmftError", "ControlError")
"""The classes whose arguments are code, message and remedy."""
GAP = "…"
"""Stands in a message for what differs each time."""
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
AREAS = (
    ("The VM: what it may do now", (
        "agent/vm", "agent/orders", "agent/answers", "agent/pairing", "agent/standby", "agent/requests",
        "agent/peer_requests", "agent/service", "agent/placement", "agent/replicas", "core/domain")),
    ("The arbiter", ("adapters/arbiter", "adapters/filearbiter", "adapters/etcd", "adapters/mounts",
                     "agent/arbiterwatch", "cli/arbiter", "core/records", "core/arbitration")),
    ("Networks, certificates and the FT log", ("adapters/ftlog", "adapters/certificate", "agent/peers", "core/wire")),
    ("Kernel, QEMU and libvirt", ("adapters/", "agent/host", "agent/facts", "agent/farewells", "core/vmstream",
                                  "core/qemu_version", "agent/doctor")),
    ("Replication", ("worker/", "agent/workers", "core/")),
    ("Agent, commands and modules", ("",)),
)  # fmt: skip
"""Headings, and which files' errors stand under each; the first that fits counts."""


@dataclass(frozen=True, order=True)
class Row:
    """One error: where its code, message and remedy come from is `file`."""

    message: str
    code: str
    remedy: str
    file: str


def rows() -> list[Row]:
    """Every error that runtime and modules raise, but for what compliance and admission find."""
    found: set[Row] = set()
    for top in (ROOT / "runtime" / "src" / "kvmft", ROOT / "plugins"):
        for path in sorted(top.rglob("*.py")):
            if "sim" not in path.relative_to(top).parts:
                found.update(_rows_of(path, path.relative_to(top).with_suffix("").as_posix()))
    return sorted(found)


def checks() -> set[str]:
    """The codes of compliance and admission, whose own tables are in docs/administration.md."""
    return {check.code for check in compliance.CHECKS} | set(admission.REASONS)


def _rows_of(path: Path, name: str) -> Iterator[Row]:
    tree = ast.parse(path.read_text())
    texts = {target.id: node.value for node in tree.body if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for call in ast.walk(scope):
            arguments = _arguments(call, scope)
            if arguments is None:
                continue
            code, message, remedy = (_text(each, texts) for each in arguments)
            if isinstance(arguments[0], ast.Constant):
                yield Row(message, code, remedy, name)
            elif isinstance(arguments[0], ast.Name):
                for pair, mended in _pairs(scope):
                    yield Row(message, pair, mended, name)


def _arguments(call: ast.AST, scope: ast.AST) -> list[ast.expr] | None:
    """Code, message and remedy of a call that makes an error, or None when it makes none."""
    if not isinstance(call, ast.Call):
        return None
    if isinstance(call.func, ast.Name) and call.func.id in RAISED:
        given = list(call.args)
    elif (isinstance(call.func, ast.Attribute) and call.func.attr == "__init__" and len(call.args) > 1
          and isinstance(scope, ast.ClassDef)
          and any(isinstance(base, ast.Name) and base.id in RAISED for base in scope.bases)):  # fmt: skip
        given = list(call.args)
    else:
        return None
    named = {each.arg: each.value for each in call.keywords}
    for name in ("code", "message", "remedy")[len(given) :]:
        given.append(named.get(name, ast.Constant("")))
    return given[:3]


def _pairs(scope: ast.AST) -> Iterator[tuple[str, str]]:
    """Codes and remedies that a function chooses from: pairs of two texts."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            code, remedy = node.elts
            if (isinstance(code, ast.Constant) and isinstance(code.value, str) and CODE.fullmatch(code.value)
                    and isinstance(remedy, ast.Constant) and isinstance(remedy.value, str)):  # fmt: skip
                yield code.value, remedy.value


def _text(node: ast.expr, texts: dict[str, ast.expr]) -> str:
    """The text of an expression; what is not known before it runs becomes GAP."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(_text(each, texts) for each in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, texts) + _text(right, texts)
        case ast.Name(id=name) if name in texts:
            return _text(texts[name], texts)
        case _:
            return GAP


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    text = re.sub(rf"({GAP}[\s,]*)+{GAP}", GAP, " ".join(text.split()))
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*") or GAP


def block() -> str:
    """What stands between the marks in the page."""
    areas: dict[str, list[Row]] = {heading: [] for heading, __ in AREAS}
    for row in rows():
        heading = next(heading for heading, files in AREAS if row.file.startswith(files))
        areas[heading].append(row)
    lines = []
    for heading, found in areas.items():
        lines += ["", f"### {heading}", "", "| message | code | what to do |", "| --- | --- | --- |"]
        cells = {(_cell(row.message), row.code, _cell(row.remedy) if row.remedy else "") for row in found}
        lines += [f"| {message} | `{code}` | {remedy} |" for message, code, remedy in sorted(cells)]
    named = ", ".join(f"`{code}`" for code in sorted(checks()))
    lines += ["", "### Reasons against protecting a VM", "",
              f"[What can be protected](administration.md#what-can-be-protected) explains each: {named}.", ""]  # fmt: skip
    return "\n".join(lines).lstrip("\n")


def fresh(page: str) -> str:
    """The page with the table as the code has it now. ValueError without the marks."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}{block()}{END}{after}"


def main() -> int:
    """Write the page, or say what is stale in it."""
    page = PAGE.read_text()
    wanted = fresh(page)
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(wanted)
        return 0
    sys.stdout.writelines(difflib.unified_diff(page.splitlines(True), wanted.splitlines(True), "is", "should be"))
    return page != wanted


if __name__ == "__main__":
    sys.exit(main())
