# SPDX-License-Identifier: GPL-3.0-or-later
"""What a drill shall do, from what the inventory and the command line say. Pure: no socket, no clock."""

from __future__ import annotations

import re
import typing as t

MODES = ("planned", "unplanned", "test")
OBJECTIVES = {
    "rto_ms": "milliseconds without an answer",
    "rpo_ms": "milliseconds of acknowledged work that is gone",
    "reprotect_ms": "milliseconds from the order until protected again",
}
CHECKS: dict[str, dict[str, t.Any]] = {
    "tcp": {"host": "", "port": 0},
    "http": {"host": "", "port": 0, "url": "", "path": "/", "status": [200], "body": "",
             "headers": {}, "validate_certs": True},
    "icmp": {"host": ""},
    "agent": {"command": [], "rc": 0, "stdout": ""},
    "tasks": {"file": "", "vars": {}},
}  # fmt: skip
"""The options of each type of health check, with their defaults; 0 and "" are "not given"."""
PATIENCE = {"timeout": 5.0, "retries": 12, "delay": 5.0}
"""Seconds for one attempt, attempts after the first, seconds between two."""
PROBES: dict[str, dict[str, t.Any]] = {
    "tcp": {"host": "", "port": 0},
    "http": CHECKS["http"],
    "icmp": {"host": ""},
    "line": {"host": "", "port": 0, "send": "", "expect": "", "verify_send": "",
             "verify_expect": ""},
}  # fmt: skip
RHYTHM = {"interval_ms": 50, "timeout_ms": 250}
OF_VM = ("name", "address", "health", "probe", "objectives", "readdress")
OF_ENABLE = ("secondary", "allowed_hosts", "options")
"""What `enable` reads of the same list; a drill leaves it alone."""
OF_GROUP = ("name", "vms", "health", "objectives")
READDRESS = ("interface", "mac", "address", "gateway")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]+/\d{1,3}")


class PlanError(Exception):
    """One sentence that names the path of what is wrong, and what to write there."""


def plan(
    groups: t.Any = None,
    vms: t.Any = None,
    vm: str = "",
    objectives: t.Any = None,
    network_map: t.Any = None,
) -> list[dict[str, t.Any]]:
    """The VMs in the order in which they are treated, one dict each.

    `groups` (kvmft_drill_groups) has the start order; `vms` (kvmft_vms) alone is one group, and beside
    groups it has the details of the VMs that they name. `vm` alone is one VM, and beside the others
    the only one of them that is drilled. PlanError for anything that is not understood.
    """
    known = _known(vms)
    wanted = _objectives(objectives, "kvmft_drill_objectives")
    maps = _network_map(network_map)
    if groups:
        rows = _of_groups(groups, known)
    elif known:
        rows = [("", {}, row, f"kvmft_vms[{at}]") for at, row in enumerate(known.values())]
    else:
        rows = [("", {}, {"name": vm}, "vm")] if vm else []
    if vm:
        chosen = [row for row in rows if row[2]["name"] == vm]
        if not chosen:
            raise PlanError(f"VM {vm} is in none of the groups of this drill. Add it to one, or leave vm out.")
        rows = chosen
    if not rows:
        raise PlanError(
            "No VM is named. Give -e vm=NAME, or a list kvmft_vms of names or of mappings with name, or "
            "kvmft_drill_groups."
        )
    steps = []
    for number, (group, shared, row, path) in enumerate(rows, 1):
        steps.append({"number": number, "group": group, **_step(row, shared, wanted, maps, path)})
    _no_vm_twice(steps)
    return steps


def _known(vms: t.Any) -> dict[str, dict[str, t.Any]]:
    known: dict[str, dict[str, t.Any]] = {}
    for at, each in enumerate(_list(vms, "kvmft_vms")):
        row = _vm(each, f"kvmft_vms[{at}]")
        if row["name"] in known:
            raise PlanError(f"kvmft_vms[{at}] names VM {row['name']} a second time. Remove one of the two.")
        known[row["name"]] = row
    return known


def _of_groups(
    groups: t.Any, known: dict[str, dict[str, t.Any]]
) -> list[tuple[str, dict[str, t.Any], dict[str, t.Any], str]]:
    rows = []
    names: list[str] = []
    for at, group in enumerate(_list(groups, "kvmft_drill_groups")):
        path = f"kvmft_drill_groups[{at}]"
        _mapping(group, path, OF_GROUP)
        name = _text(group.get("name"), f"{path}.name")
        if name in names:
            raise PlanError(f"{path}.name is {name}, as that of another group. Give each group its own.")
        names.append(name)
        members = _list(group.get("vms"), f"{path}.vms")
        if not members:
            raise PlanError(f"{path}.vms is empty. Name the VMs of group {name}, or remove the group.")
        for place, each in enumerate(members):
            row = _vm(each, f"{path}.vms[{place}]")
            merged = {**known.get(row["name"], {}), **row}
            rows.append((name, group, merged, f"{path}.vms[{place}]"))
    return rows


def _vm(each: t.Any, path: str) -> dict[str, t.Any]:
    row = {"name": each} if isinstance(each, str) else each
    _mapping(row, path, OF_VM + OF_ENABLE)
    _text(row.get("name"), f"{path}.name")
    return t.cast("dict[str, t.Any]", row)


def _step(
    row: dict[str, t.Any],
    shared: dict[str, t.Any],
    wanted: dict[str, float],
    maps: dict[str, dict[str, str]],
    path: str,
) -> dict[str, t.Any]:
    address = str(row.get("address") or "")
    readdress = _readdress(row.get("readdress"), f"{path}.readdress")
    addresses = {host: each[0]["address"].split("/")[0] for host, each in readdress.items()}
    given = [
        *_several(shared.get("health"), "health of the group"),
        *_several(row.get("health"), f"{path}.health"),
    ]
    checks = [_check(each, address, f"{path}.health[{at}]") for at, each in enumerate(given)]
    limits = {
        **wanted,
        **_objectives(shared.get("objectives"), "objectives of the group"),
        **_objectives(row.get("objectives"), f"{path}.objectives"),
    }
    return {
        "name": row["name"],
        "address": address,
        "addresses": addresses,
        "checks": checks,
        "probe": _probe(row.get("probe"), checks, address, addresses, f"{path}.probe"),
        "objectives": limits,
        "network_map": maps,
        "readdress": readdress,
    }


def _check(given: t.Any, address: str, path: str) -> dict[str, t.Any]:
    check = _typed(given, CHECKS, PATIENCE, path)
    kind = check["type"]
    if kind in ("tcp", "http", "icmp"):
        _reachable(check, address, path)
    if kind == "agent":
        if isinstance(check["command"], str):
            check["command"] = ["/bin/sh", "-c", check["command"]] if check["command"] else []
        if not check["command"]:
            raise PlanError(f"{path}.command is missing. Give the program to run in the guest, and its arguments.")
    if kind == "tasks" and not check["file"]:
        raise PlanError(f"{path}.file is missing. Give the path of a file of tasks on the controller.")
    for name, regexp in (("body", check.get("body")), ("stdout", check.get("stdout"))):
        _regexp(regexp, f"{path}.{name}")
    check["name"] = str(check["name"] or shown(check, address))
    return check


def _probe(
    given: t.Any,
    checks: list[dict[str, t.Any]],
    address: str,
    addresses: dict[str, str],
    path: str,
) -> dict[str, t.Any] | None:
    """How the VM is measured from outside: as asked for, else like its first check from outside."""
    if given is None or given is True:
        like = [each for each in checks if each["type"] in PROBES]
        if not like and not address:
            return None
        first = like[0] if like else {"type": "icmp"}
        known = {**PROBES[first["type"]], "type": 0, "name": 0}
        given = {name: each for name, each in first.items() if name in known}
    if given is False:
        return None
    probe = _typed(given, PROBES, RHYTHM, path)
    _reachable(probe, address, path)
    if probe["type"] == "line":
        for name in ("send", "expect"):
            if not probe[name]:
                raise PlanError(f"{path}.{name} is missing. Give the line to send, with {{n}} for its number, and a "
                                "regular expression for the answer.")  # fmt: skip
        if "{n}" not in probe["send"]:
            raise PlanError(f"{path}.send has no {{n}}. Put it where the number of the marker shall be.")
        if bool(probe["verify_send"]) != bool(probe["verify_expect"]):
            raise PlanError(f"{path} needs verify_send and verify_expect, or neither of them.")
        for name in ("expect", "verify_expect"):
            _regexp(probe[name].replace("{n}", "0").replace("{id}", "0"), f"{path}.{name}")
    _regexp(probe.get("body"), f"{path}.body")
    here = probe["host"] or address
    probe["hosts"] = list(dict.fromkeys([each for each in [here, *addresses.values()] if each]))
    probe["name"] = str(probe["name"] or shown(probe, address))
    return probe


def _typed(
    given: t.Any, types: dict[str, dict[str, t.Any]], numbers: dict[str, t.Any], path: str
) -> dict[str, t.Any]:
    """Defaults filled in, and what is not known refused."""
    if not isinstance(given, dict) or given.get("type") not in types:
        raise PlanError(f"{path} needs a type, one of {', '.join(types)}.")
    options = types[given["type"]]
    _mapping(given, path, ("type", "name", *options, *numbers))
    made = {"type": given["type"], "name": "", **options, **numbers}
    made.update({name: each for name, each in given.items() if each is not None})
    for name in numbers:
        made[name] = _number(made[name], f"{path}.{name}")
        if name in ("timeout", "timeout_ms", "interval_ms") and not made[name]:
            raise PlanError(f"{path}.{name} is 0; it must be greater.")
    if "retries" in made:
        made["retries"] = int(made["retries"])
    if "port" in made:
        made["port"] = int(_number(made["port"], f"{path}.port"))
    if "status" in made:
        codes = made["status"] if isinstance(made["status"], list) else [made["status"]]
        made["status"] = [int(_number(each, f"{path}.status")) for each in codes]
    return made


def _reachable(check: dict[str, t.Any], address: str, path: str) -> None:
    if check["type"] in ("tcp", "line") and not check["port"]:
        raise PlanError(f"{path}.port is missing. Give the port on which the VM answers.")
    if not 0 <= check.get("port", 0) <= 65535:
        raise PlanError(f"{path}.port is {check['port']}; a port is a number from 1 to 65535.")
    url = check.get("url")
    if url and not re.match(r"https?://[^/]", url):
        raise PlanError(f"{path}.url is no URL that begins with http:// or https://.")
    if not (check["host"] or address or url):
        raise PlanError(f"{path} has no address to ask. Give the VM an address, or the check a host.")


def shown(check: dict[str, t.Any], address: str = "") -> str:
    """A check in a few words that hold no secret: no user, query, header nor argument."""
    kind = check["type"]
    host = check.get("host") or address or "the VM"
    if kind == "http":
        return "http " + url_of(check, host, bare=True)
    if kind == "agent":
        return f"command {str(check['command'][0]).rsplit('/', 1)[-1]} in the guest"
    if kind == "tasks":
        return f"tasks {str(check['file']).rsplit('/', 1)[-1]}"
    if kind == "icmp":
        return f"ping {host}"
    return f"{kind} {host}:{check['port']}"


def url_of(check: dict[str, t.Any], host: str, bare: bool = False) -> str:
    """The URL that a check of type http asks; `bare` leaves out what may be secret."""
    url = check.get("url") or ""
    if not url:
        at = f"[{host}]" if ":" in host else host
        port = check.get("port") or 80
        url = f"http://{at}{'' if port == 80 else f':{port}'}{check.get('path') or '/'}"
    if bare:
        url = re.sub(r"[?#].*", "", re.sub(r"//[^/@]*@", "//", url))
    return url


def _readdress(given: t.Any, path: str) -> dict[str, list[dict[str, str]]]:
    """By the host on which the VM arrives: what its interfaces get there."""
    made: dict[str, list[dict[str, str]]] = {}
    if given is None:
        return made
    if not isinstance(given, dict):
        raise PlanError(f"{path} must be a mapping from the host on which the VM arrives to its addresses there.")
    for host, rows in given.items():
        made[str(host)] = []
        for at, row in enumerate(_several(rows, f"{path}.{host}")):
            here = f"{path}.{host}[{at}]"
            _mapping(row, here, READDRESS)
            if not (row.get("interface") or row.get("mac")):
                raise PlanError(f"{here} names no interface of the guest. Give interface or mac.")
            if not _ADDRESS.fullmatch(str(row.get("address") or "")):
                raise PlanError(f"{here}.address must be an address with its prefix, such as 192.0.2.10/24.")
            made[str(host)].append({name: str(row.get(name) or "") for name in READDRESS})
        if not made[str(host)]:
            raise PlanError(f"{path}.{host} is empty. Name the addresses there, or remove it.")
    return made


def _network_map(given: t.Any) -> dict[str, dict[str, str]]:
    path = "kvmft_drill_network_map"
    if not given:
        return {}
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise PlanError(f"{path} must map each host on which VMs arrive to a mapping from bridge to bridge.")
    return {str(host): {str(old): str(new) for old, new in each.items()} for host, each in given.items()}


def _objectives(given: t.Any, path: str) -> dict[str, float]:
    if given is None:
        return {}
    _mapping(given, path, tuple(OBJECTIVES))
    return {name: _number(each, f"{path}.{name}") for name, each in given.items() if each is not None}


def _no_vm_twice(steps: list[dict[str, t.Any]]) -> None:
    names = [step["name"] for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f"VM {name} is in kvmft_drill_groups twice. Each VM has one place in the start order.")


def _several(given: t.Any, path: str) -> list[t.Any]:
    """A list, or one mapping that stands for a list of one."""
    return [given] if isinstance(given, dict) else _list(given, path)


def _list(given: t.Any, path: str) -> list[t.Any]:
    if given is None or given == "":
        return []
    if not isinstance(given, list):
        raise PlanError(f"{path} must be a list.")
    return given


def _mapping(given: t.Any, path: str, known: tuple[str, ...]) -> None:
    if not isinstance(given, dict):
        raise PlanError(f"{path} must be a mapping with {', '.join(known)}.")
    for name in given:
        if name not in known:
            raise PlanError(f"{path}.{name} is not known. Known there: {', '.join(known)}.")


def _text(given: t.Any, path: str) -> str:
    if not isinstance(given, str) or not given:
        raise PlanError(f"{path} is missing. Give it a name.")
    return given


def _number(given: t.Any, path: str) -> float:
    try:
        made = float(given)
    except (TypeError, ValueError):
        made = -1.0
    if isinstance(given, bool) or not 0 <= made < float("inf"):
        raise PlanError(f"{path} must be a number that is not negative.")
    return int(made) if made == int(made) else made


def _regexp(given: t.Any, path: str) -> None:
    try:
        re.compile(given or "")
    except re.error as error:
        raise PlanError(f"{path} is no regular expression: {error}.") from error
