#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of a drill: a page and its data."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drill_report
short_description: Write the report of a drill
version_added: 0.2.0
description:
  - Works out what a drill has shown, and writes it as one HTML page that needs nothing else and as one JSON file.
  - Runs on the controller.
options:
  directory:
    description: Where the two files are written. It is made when it is not there.
    type: path
    required: true
  drill:
    description:
      - What the playbook noted and the hosts and the prober said. Without it, only whether O(directory) can be written
        to is looked at.
    type: dict
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
notes:
  - The playbooks of the drills use it; its option O(drill) is no interface for others, the JSON file is.
author:
  - The kvmft authors (@kvmft)
"""

EXAMPLES = r"""
- name: See before a drill that its report can be written
  kvmft.core.drill_report:
    directory: /srv/drills
  delegate_to: localhost
"""

RETURN = r"""
html:
  description: Path of the page.
  returned: when O(drill) is given, not in check mode
  type: str
json:
  description: Path of the data.
  returned: when O(drill) is given, not in check mode
  type: str
outcome:
  description: C(passed), C(failed), C(aborted) or C(refused).
  returned: when O(drill) is given
  type: str
reason:
  description: Why, in sentences.
  returned: when O(drill) is given
  type: str
summary:
  description: The report in a few lines for a terminal.
  returned: when O(drill) is given
  type: list
  elements: str
"""

import json
import os
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._drill_page import page
from ansible_collections.kvmft.core.plugins.module_utils._drill_record import report
from ansible_collections.kvmft.core.plugins.module_utils._drill_text import lines


def write(directory: str, name: str, text: str) -> str:
    """All of it or nothing; readable by the one who ran the drill and their group. The path."""
    path = os.path.join(directory, name)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o640)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    return path


def try_directory(directory: str, check: bool) -> None:
    """OSError when no file can be made there."""
    if check:
        above = directory
        while not os.path.exists(above):
            above = os.path.dirname(above)
        if not os.path.isdir(above):
            raise NotADirectoryError(20, "Not a directory", above)
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", above)
        return
    os.makedirs(directory, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "drill": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    directory, drill = os.path.abspath(module.params["directory"]), module.params["drill"]
    result: dict[str, t.Any] = {"changed": False}
    try:
        try_directory(directory, module.check_mode)
        if drill:
            made = report(drill)
            result.update(outcome=made["outcome"], reason=made["reason"], summary=lines(made))
            if not module.check_mode:
                text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
                result["json"] = write(directory, f"{made['id']}.json", text)
                result["html"] = write(directory, f"{made['id']}.html", page(made))
                result["changed"] = True
    except OSError as error:
        module.fail_json(
            msg=f"The report cannot be written to {directory}: {error.strerror or error}. Name a directory that "
            "can be written to in kvmft_drill_report_dir.", **result,
        )  # fmt: skip
    module.exit_json(**result)


if __name__ == "__main__":
    main()
