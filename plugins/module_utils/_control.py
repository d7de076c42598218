# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of the agent's control socket: one JSON object per line each way. Standard library only."""

from __future__ import annotations

import json
import socket
import time
import typing as t

SOCKET_PATH = "/run/kvmft/control.sock"
MAX_REPLY = 16 * 1024 * 1024  # bytes; a status is about one KiB


class ControlError(Exception):
    """A refusal of the agent, or none at all: `code`, `message`, `remedy`, `reasons`."""

    def __init__(
        self, code: str, message: str, remedy: str, reasons: list[dict[str, t.Any]] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.reasons = reasons or []

    def to_result(self) -> dict[str, t.Any]:
        """The arguments of `fail_json`: everything that a person needs to mend it."""
        sentences = [self.message, self.remedy]
        if self.reasons:
            # The agent's message repeats the reasons in one paragraph; a list reads better.
            sentences = [self.message.split(":", 1)[0] + ":"]
            sentences += [
                f"({number}) {each.get('message', '')} {each.get('remedy', '')}"
                for number, each in enumerate(self.reasons, 1)
            ]
            sentences.append(self.remedy)
        return {
            "msg": " ".join(part.strip() for part in sentences if part and part.strip()),
            "code": self.code,
            "remedy": self.remedy,
            "reasons": self.reasons,
        }


class Control:
    """Requests to the agent at `path`; each waits at most `timeout` seconds for its answer."""

    def __init__(self, path: str = SOCKET_PATH, timeout: float = 60.0) -> None:
        self.path = path
        self.timeout = timeout

    def ask(self, op: str, **args: t.Any) -> t.Any:
        """The result of `op`; ControlError with the agent's code, or `agent_down`, `agent_silent`."""
        request = json.dumps({"op": op, "args": args}) + "\n"
        try:
            reply = self._exchange(request.encode())
        except socket.timeout as error:
            raise ControlError(
                "agent_silent",
                f"The agent at {self.path} did not answer {op} within {self.timeout:g} s.",
                "See `journalctl -u kvmft-agent` on the host.",
            ) from error
        except OSError as error:
            raise ControlError(
                "agent_down",
                f"No agent answers at {self.path}: {error.strerror or error}.",
                "Run the module on a host of kvmft_hosts as root (become), and start the agent there: "
                "systemctl start kvmft-agent.",
            ) from error
        return self._result(op, reply)

    def _exchange(self, request: bytes) -> bytes:
        until = time.monotonic() + self.timeout
        reply = b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self.timeout)
            connection.connect(self.path)
            connection.sendall(request)
            while not reply.endswith(b"\n") and len(reply) <= MAX_REPLY:
                connection.settimeout(max(0.001, until - time.monotonic()))
                data = connection.recv(65536)
                if not data:
                    break
                reply += data
        return reply

    @staticmethod
    def _result(op: str, reply: bytes) -> t.Any:
        try:
            answer = json.loads(reply)
            if answer["ok"] is True:
                return answer["result"]
            error = answer["error"]
            refusal = ControlError(
                error["code"], error["message"], error.get("remedy", ""), error.get("reasons")
            )
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            raise ControlError(
                "agent_reply",
                f"The agent's reply to {op} is not understood: {reply[:200]!r}.",
                "Use a collection and an agent of the same version; the site playbook installs both.",
            ) from wrong
        raise refusal
