#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks VMs from outside, again and again, while a drill goes on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drill_probe
short_description: Watch VMs from outside during a drill
version_added: 0.2.0
description:
  - Asks each VM at a fixed interval and returns how long each did not answer, and what became of the markers that
    it acknowledged.
  - O(state=started) asks until O(state=stopped) with the same O(directory), or for O(seconds). Run it with C(async).
  - It runs on the controller, or on a third machine that reaches the VMs as their clients do.
options:
  state:
    description: V(started) watches; V(stopped) ends a watch.
    type: str
    choices: [started, stopped]
    default: started
  probes:
    description: By the VM's name, its C(probe) as M(kvmft.core.drill_plan) returns it.
    type: dict
    default: {}
  directory:
    description: An existing, private directory, by which a watch is told to end. Removing it ends the watch too.
    type: path
    required: true
  seconds:
    description: Time after which a watch ends by itself.
    type: int
    default: 14400
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: none
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
notes:
  - Probes may have headers that are secret. Run it with C(no_log), as the playbooks do.
author:
  - The kvmft authors (@kvmft)
"""

EXAMPLES = r"""
- name: Begin to watch
  kvmft.core.drill_probe:
    directory: "{{ workdir.path }}"
    probes:
      db1: "{{ plan.steps[0].probe }}"
  delegate_to: localhost
  async: 14460
  poll: 0
  register: watch

- name: End it
  kvmft.core.drill_probe:
    state: stopped
    directory: "{{ workdir.path }}"
  delegate_to: localhost

- name: Fetch what was seen
  ansible.builtin.async_status:
    jid: "{{ watch.ansible_job_id }}"
  delegate_to: localhost
  register: seen
  until: seen.finished
  retries: 30
  delay: 1
"""

RETURN = r"""
now:
  description: Unix time on this machine.
  returned: success
  type: float
probes:
  description:
    - By the VM's name what was seen. C(attempts) and C(answers) are numbers; C(silences) are pairs of Unix times
      between two answers that are further apart than C(floor) seconds, the second one null where there was no answer any
      more; C(answer_ms) has percentiles; C(markers) says of how many acknowledged markers how many are lost.
  returned: when O(state=started)
  type: dict
"""

import os
import threading
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._drill_probe import Answer, Lines, attempt
from ansible_collections.kvmft.core.plugins.module_utils._drill_watch import Watch, markers

STOP = "stop"
BEFORE_SILENCE = 3.0  # seconds before a silence whose markers are read back: a failover takes the newest
MOST_READ = 2000  # markers that are read back at most, the newest ones
VERIFY_SECONDS = 120.0  # for reading all of them back: a VM that is busy answers slowly
VERIFY_TIMEOUT = 5.0


class Prober(threading.Thread):
    """Watches one VM until `stop` is set."""

    def __init__(self, probe: dict[str, t.Any], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._probe = probe
        self._stopped = stop
        self._interval = probe["interval_ms"] / 1000
        self._floor = 2 * self._interval
        self._watch = Watch(self._floor)
        self._lines = Lines(probe) if probe["type"] == "line" else None
        self._acknowledged: list[tuple[int, float, str]] = []
        # Steps of the wall clock during a drill are no silences.
        self._base = time.time() - time.monotonic()
        self.result: dict[str, t.Any] = {}

    def _now(self) -> float:
        return self._base + time.monotonic()

    def run(self) -> None:
        """Ask, and at the end read markers back."""
        hosts = list(self._probe["hosts"]) or [""]
        number, due = 0, self._now()
        while not self._stopped.is_set():
            number += 1
            begun = self._now()
            answer = self._ask(hosts[0], number)
            self._watch.feed(begun, self._now(), answer.ok, answer.detail)
            if not answer.ok:
                # After a failover to another site the VM may have its other address.
                hosts.append(hosts.pop(0))
            due = max(due + self._interval, self._now())
            self._stopped.wait(max(0.0, due - self._now()))
        result = self._watch.result(self._now())
        result["floor"] = self._floor
        result["markers"] = self._markers(hosts, result["silences"])
        result["broken"] = self._lines.broken if self._lines else None
        self.result = result

    def _ask(self, host: str, number: int) -> Answer:
        timeout = self._probe["timeout_ms"] / 1000
        if self._lines is None:
            return attempt(self._probe, host, timeout)
        answer, given = self._lines.mark(host, number, timeout)
        if answer.ok:
            self._acknowledged.append((number, self._now(), given))
        return answer

    def _markers(
        self, hosts: list[str], silences: list[list[float | None]]
    ) -> dict[str, t.Any] | None:
        if self._lines is None or not self._probe["verify_send"]:
            return None
        near = [row for row in self._acknowledged
                if any(start - BEFORE_SILENCE <= row[1] <= start for start, __ in silences if start)]  # fmt: skip
        rows = sorted({*near, *self._acknowledged[-100:]})[-MOST_READ:]
        there: dict[int, bool | None] = {}
        until = time.monotonic() + VERIFY_SECONDS
        for number, __, given in rows:
            there[number] = None
            for host in hosts if time.monotonic() < until else ():
                there[number] = self._lines.verify(host, number, given, VERIFY_TIMEOUT)
                if there[number] is not None:
                    break
        self._lines.close()
        found = markers([(number, at) for number, at, __ in rows], there)
        found["acknowledged"] = len(self._acknowledged)
        return found


def watch(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """What all probers saw."""
    stop = threading.Event()
    probers = {name: Prober(probe, stop) for name, probe in params["probes"].items()}
    for prober in probers.values():
        prober.start()
    until = time.monotonic() + params["seconds"]
    directory = params["directory"]
    while time.monotonic() < until and os.path.isdir(directory):
        if os.path.exists(os.path.join(directory, STOP)):
            break
        time.sleep(0.1)
    stop.set()
    for prober in probers.values():
        prober.join(VERIFY_SECONDS + 2 * VERIFY_TIMEOUT)
    return {name: prober.result for name, prober in probers.items() if prober.result}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "probes": {"type": "dict", "default": {}},
            "directory": {"type": "path", "required": True},
            "seconds": {"type": "int", "default": 14400},
        },
    )
    directory = module.params["directory"]
    if not os.path.isdir(directory):
        module.fail_json(msg=f"There is no directory {directory}. Make one with ansible.builtin.tempfile first.")
    result: dict[str, t.Any] = {"changed": False}
    if module.params["state"] == "stopped":
        with open(os.path.join(directory, STOP), "w", encoding="utf-8"):
            pass
    else:
        result["probes"] = watch(module.params)
    module.exit_json(now=time.time(), **result)


if __name__ == "__main__":
    main()
