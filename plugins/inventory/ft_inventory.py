# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Groups a cluster's hosts and VMs by their fault tolerance."""

from __future__ import annotations

DOCUMENTATION = r"""
name: ft_inventory
short_description: Hosts and VMs of kvmft, grouped by role and state
version_added: 0.1.0
author:
  - The kvmft authors (@kvmft)
description:
  - Asks the agent of each host over SSH, with C(kvmft host --json), and groups hosts and VMs by what they say.
    Nothing is changed, and no port has to be open besides SSH.
  - The hosts are those of O(group) in the inventory sources that were read before this one, with their usual connection
    variables, or those of O(hosts).
  - A source's file name ends in V(ft_inventory.yml) or V(ft_inventory.yaml).
  - Hosts are in the groups C(ft_hosts), C(ft_maintenance) and C(ft_unreachable), and have the variables C(ft_reachable),
    C(ft_reason), C(ft_maintenance), C(ft_primaries), C(ft_secondaries) and C(ft_host), which is what M(kvmft.core.ft_host_info) returns.
  - VMs are hosts of the inventory too. They are in the groups C(ft_vms), C(ft_STATE), such as C(ft_protected) or C(ft_need_secondary),
    C(ft_primary_on_HOST) and C(ft_secondary_on_HOST), and have the variables C(ft_state), C(ft_reason), C(ft_primary), C(ft_secondary) and
    C(ft_status), which is what M(kvmft.core.ft_vm_info) returns. The groups of all states exist, also empty ones.
  - A VM that is in the inventory already, by the same name, gets groups and variables besides what it has.
options:
  plugin:
    description: Token that this file is a source of this plugin.
    type: str
    required: true
    choices: [kvmft.core.ft_inventory]
  group:
    description: Group of the earlier sources whose hosts are asked. Only used without O(hosts).
    type: str
    default: kvmft_hosts
  hosts:
    description:
      - The hosts to ask, where no earlier source has them, by the names that kvmft knows them by. Each has its connection variables,
        C(ansible_host), C(ansible_port), C(ansible_user), C(ansible_ssh_private_key_file), C(ansible_ssh_common_args),
        C(ansible_ssh_extra_args), C(ansible_ssh_executable) or C(ansible_connection=local).
    type: dict
    default: {}
  vms:
    description: Add the VMs. With V(false) only hosts are grouped.
    type: bool
    default: true
  vm_prefix:
    description: What is put before the names of VMs, where they would be taken for other hosts of the inventory.
    type: str
    default: ""
  command:
    description: What is run on each host. It prints what the agent knows as JSON.
    type: str
    default: kvmft host --json
  become:
    description: Run it with C(sudo -n) where the user is not root. A user in the group C(kvmft) does not need it.
    type: bool
    default: true
  host_key_checking:
    description: Whether SSH refuses hosts whose key it does not know.
    type: bool
    default: true
    env:
      - name: ANSIBLE_HOST_KEY_CHECKING
    ini:
      - section: defaults
        key: host_key_checking
  timeout:
    description: Seconds that a host has for its answer.
    type: int
    default: 20
extends_documentation_fragment:
  - constructed
  - inventory_cache
notes:
  - Hosts that do not answer are warned of and put into C(ft_unreachable). It is an error when none answers.
  - With the cache on, groups may be of the past. Do not decide on a failover by a cached inventory.
"""

EXAMPLES = r"""
# kvmft.ft_inventory.yml, used beside the inventory of the hosts:
#   ansible-playbook -i inventory.yml -i kvmft.ft_inventory.yml play.yml
plugin: kvmft.core.ft_inventory

---
# On its own, with more groups and variables
plugin: kvmft.core.ft_inventory
hosts:
  node-a:
    ansible_host: 192.0.2.11
  node-b:
    ansible_host: 192.0.2.12
compose:
  guest_is_slowed: ft_status.pause_ms.p99 | default(0, true) > 10
groups:
  ft_unprotected: ft_state | default('protected') in ['need_secondary', 'starting', 'fenced']
keyed_groups:
  - key: ft_status.accelerator | default('')
    prefix: ft_accelerator
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: /var/cache/ansible
cache_timeout: 60
"""

import concurrent.futures
import json
import re
import shlex
import subprocess
import typing as t

from ansible.errors import AnsibleParserError
from ansible.inventory.group import to_safe_group_name
from ansible.inventory.helpers import get_group_vars
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible.utils.vars import combine_vars
from ansible_collections.kvmft.core.plugins.plugin_utils import _cluster

try:
    from ansible.template import trust_as_template
except ImportError:  # before ansible-core 2.19, where what is not marked as text is a template

    def trust_as_template(value: str) -> str:
        """`value` as it is."""
        return value


SUFFIXES = ("ft_inventory.yml", "ft_inventory.yaml")
WORD = re.compile(r"[\w.:@+-]*", re.ASCII)
AT_ONCE = 16  # hosts asked at the same time
CONNECTION = (
    "ansible_connection", "ansible_host", "ansible_port", "ansible_user",
    "ansible_ssh_private_key_file", "ansible_ssh_common_args", "ansible_ssh_extra_args",
    "ansible_ssh_executable",
)  # fmt: skip


class Silent(Exception):
    """A host gave no answer; the text says why."""


def command_line(
    name: str, variables: t.Mapping[str, t.Any], command: str, become: bool, check_key: bool
) -> list[str]:
    """How `command` is run on host `name`, as arguments. `variables` are its connection variables."""
    if become:
        quoted = shlex.quote(command)
        command = f'if [ "$(id -u)" = 0 ]; then sh -c {quoted}; else sudo -n sh -c {quoted}; fi'
    if variables.get("ansible_connection") == "local":
        return ["/bin/sh", "-c", command]
    line = [str(variables.get("ansible_ssh_executable") or "ssh"), "-T", "-o", "BatchMode=yes"]
    if not check_key:
        line += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                 "-o", "LogLevel=ERROR"]  # fmt: skip
    for key, option in (
        ("ansible_port", "-p"), ("ansible_user", "-l"), ("ansible_ssh_private_key_file", "-i"),
    ):  # fmt: skip
        if variables.get(key):
            line += [option, str(variables[key])]
    for key in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        line += shlex.split(str(variables.get(key) or ""))
    # After -- a name that begins with a dash is no option.
    return [*line, "--", str(variables.get("ansible_host") or name), command]


def ask(line: list[str], timeout: int) -> dict[str, t.Any]:
    """What the agent answers to the command `line`; Silent says why it does not."""
    try:
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise Silent(f"there was no answer within {timeout} s") from None
    except OSError as error:
        raise Silent(f"{line[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}")
        raise Silent(words.splitlines()[-1])
    try:
        found = json.loads(done.stdout)
        return {"host": str(found["host"]), "vms": list(found["vms"]), **found}
    except (ValueError, KeyError, TypeError) as error:
        raise Silent(f"its answer is not understood: {done.stdout[:80]!r}") from error


def as_text(value: t.Any) -> t.Any:
    """`value`, in which nothing is a template or an expression: reasons and names come from hosts.

    Plain words can be neither. They go without a mark, because marks are seen in exported inventories.
    """
    if isinstance(value, dict):
        return {key: as_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_text(each) for each in value]
    if not isinstance(value, str):
        return value
    return trust_as_template(value) if WORD.fullmatch(value) else wrap_var(value)


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Asks all hosts at once, and puts what they say into the inventory."""

    NAME = "kvmft.core.ft_inventory"

    def verify_file(self, path: str) -> bool:
        """True for files that are named as sources of this plugin."""
        return bool(super().verify_file(path)) and path.endswith(SUFFIXES)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill `inventory`. AnsibleParserError when no host answers, or when names collide."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        key = self.get_cache_key(path)
        found = self._cache.get(key) if cache and self.get_option("cache") else None
        if found is None:
            found = self._ask_all()
            if self.get_option("cache"):
                self._cache[key] = found
        self._fill(found["answers"], found["silent"])

    def _hosts(self) -> dict[str, dict[str, t.Any]]:
        """The hosts to ask, each with its connection variables."""
        given = self.get_option("hosts")
        if given:
            found = {name: dict(variables or {}) for name, variables in given.items()}
        else:
            group = self.get_option("group")
            members = self.inventory.groups[group].get_hosts() if group in self.inventory.groups else []
            if not members:
                raise AnsibleParserError(
                    f"There are no hosts to ask: no earlier inventory source has hosts in the group "
                    f"{group}. Give the hosts' inventory before this one, or list them under hosts."
                )
            found = {
                host.name: combine_vars(get_group_vars(host.get_groups()), host.get_vars())
                for host in members
            }
        return {name: self._templated(variables) for name, variables in found.items()}

    def _templated(self, variables: dict[str, t.Any]) -> dict[str, t.Any]:
        self.templar.available_variables = variables
        return {key: self.templar.template(variables[key]) for key in CONNECTION if key in variables}

    def _ask_all(self) -> dict[str, dict[str, t.Any]]:
        """What the hosts answered, and why others did not, by their names in the inventory."""
        how = (self.get_option("command"), self.get_option("become"), self.get_option("host_key_checking"))
        lines = {name: command_line(name, given, *how) for name, given in self._hosts().items()}
        answers: dict[str, t.Any] = {}
        silent: dict[str, str] = {}
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            asked = {
                name: pool.submit(ask, line, self.get_option("timeout")) for name, line in lines.items()
            }
            for name, answer in asked.items():
                try:
                    answers[name] = answer.result()
                except Silent as why:
                    silent[name] = str(why)
                    self.display.warning(f"kvmft: host {name} did not answer: {why}")
        if not answers:
            raise AnsibleParserError(
                "No host answered: " + "; ".join(f"{name}: {why}" for name, why in silent.items())
                + ". See that SSH reaches the hosts, that kvmft is installed there and that the user "
                "is root, may use sudo without a password, or is in the group kvmft."
            )  # fmt: skip
        return {"answers": answers, "silent": silent}

    def _fill(self, answers: dict[str, t.Any], silent: dict[str, str]) -> None:
        hosts, vms = _cluster.picture(answers, silent)
        prefix = self.get_option("vm_prefix")
        named = {prefix + name: entry for name, entry in vms.items()} if self.get_option("vms") else {}
        both = sorted(set(hosts) & set(named))
        if both:
            raise AnsibleParserError(
                f"VM and host have the same name: {', '.join(both)}. Give vm_prefix, such as vm_."
            )
        groups = [_cluster.HOSTS, _cluster.MAINTENANCE, _cluster.UNREACHABLE]
        if named:
            groups.append(_cluster.VMS)
        if self.get_option("vms"):
            groups += [f"ft_{state}" for state in _cluster.STATES]
        for group in groups:
            self.inventory.add_group(group)
        for name, entry in {**hosts, **named}.items():
            self._add(name, entry)

    def _add(self, name: str, entry: _cluster.Entry) -> None:
        self.inventory.add_host(name)
        for variable, value in entry.variables.items():
            self.inventory.set_variable(name, variable, as_text(value))
        for group in entry.groups:
            safe = self.inventory.add_group(to_safe_group_name(group, force=True, silent=True))
            self.inventory.add_host(name, group=safe)
        strict = self.get_option("strict")
        for compose in (
            lambda known: self._set_composite_vars(self.get_option("compose"), known, name, strict=strict),
            lambda known: self._add_host_to_composed_groups(
                self.get_option("groups"), known, name, strict=strict
            ),
            lambda known: self._add_host_to_keyed_groups(
                self.get_option("keyed_groups"), known, name, strict=strict
            ),
        ):
            compose(self.inventory.get_host(name).get_vars())
