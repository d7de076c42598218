# SPDX-License-Identifier: GPL-3.0-or-later
"""A running VM through libvirt's own tools: its guest agent and its interfaces. Standard library only."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import time
import typing as t
import xml.etree.ElementTree as ET

URI = "qemu:///system"
POLL = 0.2  # seconds between two looks at a command in the guest
STANDSTILL = 10.0  # seconds that a VM may be found paused before that is no checkpoint any more
STANDSTILL_POLL = 0.03
NOT_RUNNING = "domain is not running"  # what libvirt says of a paused one too
ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
"""QEMU's own default, in milliseconds (qapi/net.json, AnnounceParameters)."""


class GuestError(Exception):
    """A sentence with what to do about it."""


class Virsh:
    """`virsh` on this host; `run` can be replaced by tests."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout

    def run(self, *arguments: str) -> str:
        """Its standard output; GuestError with what it said."""
        try:
            done = subprocess.run(
                ["virsh", "-q", "-c", URI, *arguments], capture_output=True, text=True,
                timeout=self.timeout + 10, check=False, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except FileNotFoundError as error:
            raise GuestError("There is no virsh here. Run the module on the host that runs the VM.") from error
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"virsh {arguments[0]} did not end within {self.timeout + 10:g} s.") from error
        if done.returncode:
            raise GuestError(done.stderr.strip().removeprefix("error: "))
        return done.stdout


class Agent:
    """The QEMU guest agent of one VM (QAPI schema: qga/qapi-schema.json)."""

    def __init__(self, virsh: Virsh, name: str) -> None:
        self._virsh = virsh
        self._name = name

    def ask(self, command: str, **arguments: t.Any) -> t.Any:
        """The answer to one command.

        libvirt refuses, before it sends anything, while the VM is paused; each checkpoint pauses it for a moment.
        """
        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        timeout = str(max(1, int(self._virsh.timeout)))
        until = time.monotonic() + STANDSTILL
        while True:
            try:
                said = self._virsh.run("qemu-agent-command", self._name, request, "--timeout", timeout)
                return json.loads(said)["return"]
            except GuestError as error:
                if NOT_RUNNING in str(error) and time.monotonic() < until and self._alive():
                    time.sleep(STANDSTILL_POLL)
                    continue
                raise GuestError(
                    f"The guest agent of VM {self._name} did not answer {command}: {error}. Install qemu-guest-agent in "
                    "the guest, and give the VM the channel org.qemu.guest_agent.0."
                ) from error

    def _alive(self) -> bool:
        return self._virsh.run("domstate", self._name).strip() in ("paused", "running")

    def execute(self, command: list[str], timeout: float) -> tuple[int, str, str]:
        """Run a program in the guest; its exit code (minus a signal), output and errors."""
        pid = self.ask("guest-exec", path=command[0], arg=command[1:],
                       **{"capture-output": True})["pid"]  # fmt: skip
        until = time.monotonic() + timeout
        while not (found := self.ask("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() >= until:
                raise GuestError(f"{command[0]} did not end within {timeout:g} s in VM {self._name}.")
            time.sleep(POLL)
        code = found.get("exitcode", -int(found.get("signal", 0)))
        return int(code), _text(found.get("out-data")), _text(found.get("err-data"))

    def interfaces(self) -> list[dict[str, t.Any]]:
        """`name`, `mac`, and `addresses` with prefix, of each interface that has a MAC."""
        return [
            {"name": each["name"], "mac": each["hardware-address"].lower(),
             "addresses": [f"{one['ip-address']}/{one['prefix']}" for one in each.get("ip-addresses", [])]}
            for each in self.ask("guest-network-get-interfaces") if each.get("hardware-address")
        ]  # fmt: skip


def _text(data: str | None) -> str:
    return base64.b64decode(data or "").decode("utf-8", "replace")


def bridge_changes(xml: str, bridges: dict[str, str]) -> list[dict[str, str]]:
    """The interfaces that hang on a bridge of `bridges`: `mac`, `old`, `new`, and the changed `xml`.

    GuestError when `bridges` names one on which no interface hangs, because another was meant then.
    """
    found, seen = [], set()
    for interface in ET.fromstring(xml).iterfind("./devices/interface"):
        source, mac = interface.find("source"), interface.find("mac")
        old = source.get("bridge") if source is not None and interface.get("type") == "bridge" else None
        seen.add(old)
        if source is None or mac is None or old not in bridges:
            continue
        source.set("bridge", bridges[old])
        found.append({"mac": str(mac.get("address")), "old": str(old), "new": bridges[old],
                      "xml": ET.tostring(interface, encoding="unicode")})  # fmt: skip
    if not seen & {*bridges, *bridges.values()}:
        has = ", ".join(sorted(each for each in seen if each)) or "none at all"
        raise GuestError(
            f"No interface of the VM hangs on {' or '.join(sorted(bridges))}; its bridges are: {has}. Only interfaces "
            "of type bridge can be mapped. Correct kvmft_drill_network_map."
        )
    return found


def plug(virsh: Virsh, name: str, change: dict[str, str]) -> None:
    """Hang an interface of a running VM on another bridge, now and in its definition if it has one.

    QEMU then tells the network where the VM is: switches that are connected to both bridges would go on sending to the
    old one, until their tables are forgotten (minutes).
    """
    persistent = re.search(r"^Persistent:\s+yes", virsh.run("dominfo", name), re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(change["xml"])
        file.flush()
        virsh.run("update-device", name, file.name, "--live", *(["--config"] if persistent else []))
    virsh.run("qemu-monitor-command", name, json.dumps({"execute": "announce-self", "arguments": ANNOUNCE}))


def address_changes(
    interfaces: list[dict[str, t.Any]], wanted: list[dict[str, str]]
) -> list[list[str]]:
    """The commands (for Linux with ip) that give the guest's interfaces the wanted addresses.

    Only addresses of the same family as the wanted one are taken away, and link-local ones never.
    """
    commands = []
    for row in wanted:
        mac = row["mac"].lower()
        chosen = [each for each in interfaces
                  if each["name"] == row["interface"] or (mac and each["mac"] == mac)]  # fmt: skip
        if not chosen:
            has = ", ".join(f"{each['name']} ({each['mac']})" for each in interfaces)
            raise GuestError(f"The guest has no interface {row['interface'] or mac}; it has {has}. Correct readdress.")
        name, family = chosen[0]["name"], ":" in row["address"]
        old = [each for each in chosen[0]["addresses"]
               if (":" in each) == family and not each.lower().startswith(("fe80:", "169.254."))]  # fmt: skip
        if row["address"] not in old:
            commands.append(["ip", "address", "add", row["address"], "dev", name])
        commands += [["ip", "address", "del", each, "dev", name] for each in old if each != row["address"]]
        if row["gateway"] and commands:
            ip = ["ip", "-6"] if family else ["ip"]
            commands.append([*ip, "route", "replace", "default", "via", row["gateway"], "dev", name])
    return commands
