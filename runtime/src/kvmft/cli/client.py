"""The control socket's client."""

from __future__ import annotations

import json
import socket
from typing import Any

from kvmft.errors import KvmftError

SOCKET = "/run/kvmft/control.sock"
TIMEOUT = 90.0


def ask(path: str, op: str, **args: Any) -> Any:
    """Send one request to the agent and return its result; KvmftError when it refuses."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(path)
            sock.sendall(json.dumps({"op": op, "args": args}).encode() + b"\n")
            line = sock.makefile("rb").readline()
        except OSError as error:
            raise KvmftError(
                "agent_unreachable",
                f"The agent does not answer on {path}: {error}.",
                "Check `systemctl status kvmft-agent`; only root and group kvmft may ask.",
            ) from error
    if not line:
        raise KvmftError("agent_unreachable", "The agent closed the connection.",
                         "See `journalctl -u kvmft-agent`.")  # fmt: skip
    reply = json.loads(line)
    if reply.get("ok"):
        return reply["result"]
    return _raise(reply["error"])


def _raise(error: dict[str, Any]) -> Any:
    def made(value: dict[str, Any]) -> KvmftError:
        reasons = [made(each) for each in value.get("reasons", [])]
        return KvmftError(value["code"], value["message"], value.get("remedy", ""), reasons)

    raise made(error)
