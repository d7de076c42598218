"""JSON lines over asyncio streams, and the one shape of requests and replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from kvmft.errors import KvmftError

MAX_LINE = 8 << 20
Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]


def error_of(value: dict[str, Any]) -> KvmftError:
    """The error in a reply, as an exception again."""
    return KvmftError(
        str(value.get("code", "unknown")),
        str(value.get("message", "")),
        str(value.get("remedy", "")),
        [error_of(each) for each in value.get("reasons", [])],
    )


async def _answer(line: bytes, handler: Handler) -> dict[str, Any]:
    try:
        request = json.loads(line)
        op, args = request["op"], request.get("args") or {}
        if not isinstance(op, str) or not isinstance(args, dict):
            raise ValueError("op must be a string and args an object")
    except (ValueError, KeyError, TypeError) as error:
        bad = KvmftError("bad_request", f"The request is not understood: {error}.",
                         'Send one JSON object per line: {"op": ..., "args": {...}}.')  # fmt: skip
        return {"ok": False, "error": bad.to_dict()}
    try:
        return {"ok": True, "result": await handler(op, args)}
    except KvmftError as error:
        return {"ok": False, "error": error.to_dict()}
    except Exception as error:  # the one place where a bug becomes a reply and not a dead socket
        import traceback

        traceback.print_exc()
        bug = KvmftError("internal", f"The agent failed on {op}: {error!r}.",
                         "See `journalctl -u kvmft-agent`, and report it.")  # fmt: skip
        return {"ok": False, "error": bug.to_dict()}


async def serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    """Answer request lines until the client closes."""
    try:
        while line := await reader.readline():
            reply = await _answer(line, handler)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
    except (OSError, ValueError, asyncio.IncompleteReadError):
        pass  # the client went away, or sent a line beyond MAX_LINE
    finally:
        writer.close()


async def call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, op: str, args: dict[str, Any]
) -> Any:
    """Send one request and return its result; KvmftError when the other side refused."""
    writer.write(json.dumps({"op": op, "args": args}).encode() + b"\n")
    await writer.drain()
    line = await reader.readline()
    if not line:
        raise KvmftError("peer_hung_up", f"The connection was closed without an answer to {op}.",
                         "See the agent's log on the other host.")  # fmt: skip
    reply = json.loads(line)
    if not reply.get("ok"):
        raise error_of(reply.get("error", {}))
    return reply["result"]
