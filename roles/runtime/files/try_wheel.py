# SPDX-License-Identifier: GPL-3.0-or-later
"""Say whether a wheel of the runtime works on this host, without installing it.

    try_wheel.py WHEEL [CONFIG]

Run with the interpreter of the installed runtime. Prints JSON: `installed` and `new`, each with `version` and `protocol`
(that of the FT log), or null where nothing is installed; and `problem`, a sentence, empty when the new version imports here
and reads this host's configuration. A wheel is a zip file, from which Python imports (PEP 273).
"""

import json
import subprocess
import sys

ASK = (
    "import json, sys\n"
    "sys.path[:0] = sys.argv[2:]\n"
    "from kvmft import __version__\n"
    "from kvmft.agent.config import load\n"
    "from kvmft.core.wire import PROTOCOL_VERSION\n"
    "import kvmft.agent.service, kvmft.worker.engine\n"
    "if sys.argv[1]:\n"
    "    load(sys.argv[1])\n"
    "print(json.dumps({'version': __version__, 'protocol': PROTOCOL_VERSION}))\n"
)


def ask(config, *path):
    """(version and protocol or None, what is wrong)."""
    done = subprocess.run([sys.executable, "-c", ASK, config, *path], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return None, lines[-1] if lines else "exit code {}".format(done.returncode)
    return json.loads(done.stdout), ""


def main(arguments):
    """Try it."""
    wheel, config = arguments[0], arguments[1] if len(arguments) > 1 else ""
    installed, __ = ask("")
    new, problem = ask(config, wheel)
    print(json.dumps({"installed": installed, "new": new, "problem": problem}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
