"""etcd as the arbiter, through its v3 JSON gateway (etcd documentation, api-grpc-gateway).

One builder makes every transaction, because the gateway ignores misspelt fields: with `compare`
misspelt, the put would simply happen. `probe` sends a canary that must fail. Nothing here retries:
the caller decides what a missing answer means.

A key is never deleted: a creation compares with "this key does not exist", and one that was held back
would become true again. Taking a record away puts a marker with random bits in its place; a creation
that meets a marker is asked again with that very marker as its base.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import ssl
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from kvmft.core.arbitration import Reply
from kvmft.core.position import Position
from kvmft.errors import KvmftError
from kvmft.ports import Health, Unclear

TIMEOUT = 3.0
"""Seconds for one request. A request that timed out may still be applied later."""

REMOVED = b"kvmft: removed "
"""A value that begins so says that the record was taken away; 32 hex digits follow."""

GOOD_VERSIONS = ((3, 4, 21), (3, 5, 5))
"""Per minor release, the first version that does not lose acknowledged writes."""


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def build_txn(key: str, base: bytes | None, new: bytes) -> dict[str, Any]:
    """The swap of `base` (None: the key must never have existed) by `new`."""
    name = _b64(key.encode())
    if base is None:
        compare = {"key": name, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
    else:
        compare = {"key": name, "target": "VALUE", "result": "EQUAL", "value": _b64(base)}
    return {
        "compare": [compare],
        "success": [{"request_put": {"key": name, "value": _b64(new)}}],
        "failure": [{"request_range": {"key": name}}],
    }


def parse_txn(answer: Any) -> Reply:
    """The gateway's answer; `succeeded` is absent when false, an empty range has no `kvs`, and
    an empty value no `value`.

    The header's revision is the one at which the transaction was applied: a transaction that
    contains a put goes through the log, also when its condition is false.
    """
    if not isinstance(answer, dict) or "header" not in answer:
        raise Unclear(f"an answer without header: {str(answer)[:200]}")
    position = _position(answer["header"])
    if answer.get("succeeded") is True:
        return Reply(True, None, position)
    try:
        found = answer["responses"][0]["response_range"].get("kvs", [])
        # Empty fields are left out in this JSON: a row without `value` has an empty value.
        value = base64.b64decode(found[0].get("value", ""), validate=True) if found else None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Unclear(f"an answer without range: {str(answer)[:200]}") from error
    return Reply(False, value, position)


def _position(header: Any) -> Position:
    """From a response header; 64-bit integers are strings in the gateway's JSON."""
    try:
        return Position(f"etcd cluster {int(header['cluster_id']):x}", int(header["revision"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Unclear(f"an answer with an unknown header: {str(header)[:200]}") from error


@dataclass(frozen=True)
class EtcdConfig:
    """Endpoints (URLs) and, for https, the files of the TLS client."""

    endpoints: tuple[str, ...]
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


def config_of(value: dict[str, Any]) -> EtcdConfig:
    """From the `arbiter` section of kvmft.yml."""
    tls = value.get("tls") or {}
    return EtcdConfig(tuple(value["endpoints"]), tls.get("ca"), tls.get("cert"), tls.get("key"))


class Etcd:
    """Single requests to an etcd member; blocking, so call it from a thread."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config

    def swap(self, key: str, base: bytes | None, new: bytes | None, attempt: int = 0) -> Reply:
        """See `kvmft.ports.Arbiter`; `attempt` chooses the endpoint that is asked."""
        value = REMOVED + secrets.token_hex(16).encode() if new is None else new
        reply = self._txn(key, base, value, attempt)
        if base is None and _is_removed(reply.current):
            reply = self._txn(key, reply.current, value, attempt)
        return replace(reply, current=None) if _is_removed(reply.current) else reply

    def _txn(self, key: str, base: bytes | None, new: bytes, attempt: int) -> Reply:
        return parse_txn(self._post("/v3/kv/txn", build_txn(key, base, new), attempt))

    def probe(self, cluster: str, host: str) -> Health:
        """Every endpoint that answers must be a good version and must not apply a canary, a
        transaction whose condition is false; one at least has to answer."""
        endpoints, silent = self._config.endpoints, []
        healthy: list[tuple[str, Position]] = []
        for attempt in range(len(endpoints)):
            try:
                version = self._version(attempt)
                healthy.append((version, self._canary(cluster, attempt)))
            except Unclear as error:
                silent.append(str(error))
        if not healthy:
            raise self._unreachable("; ".join(silent))
        detail = "etcd " + ", ".join(sorted({version for version, __ in healthy}))
        if silent:
            detail += f"; {len(silent)} of {len(endpoints)} do not answer: {'; '.join(silent)}"
        position = max(position for __, position in healthy)
        return Health(detail, position.arbiter, {"": position.revision})

    def _canary(self, cluster: str, attempt: int) -> Position:
        never = secrets.token_hex(16).encode()
        reply = self.swap(f"/kvmft/{cluster}/canary", never, b"canary", attempt)
        if reply.succeeded:
            raise KvmftError(
                "arbiter_canary",
                f"The arbiter at {self._endpoint(attempt)} applied a transaction whose condition "
                "was false.",
                "This etcd, or a proxy before it, cannot arbitrate; use etcd 3.4.21, 3.5.5 or newer.",
            )
        assert reply.position is not None
        return reply.position

    def _version(self, attempt: int) -> str:
        answer = self._request("GET", "/version", None, attempt)
        text = str(answer.get("etcdserver")) if isinstance(answer, dict) else str(answer)
        if not acceptable(text):
            raise KvmftError(
                "arbiter_version",
                f"etcd {text} at {self._endpoint(attempt)} may lose acknowledged writes.",
                "Upgrade it to 3.4.21, 3.5.5 or newer.",
            )
        return text

    def _unreachable(self, why: str) -> KvmftError:
        return KvmftError(
            "arbiter_unreachable",
            f"The arbiter at {', '.join(self._config.endpoints)} does not answer: {why}.",
            "Check that etcd runs there, the management network, and the certificates.",
        )

    def _post(self, path: str, body: dict[str, Any], attempt: int) -> Any:
        return self._request("POST", path, json.dumps(body).encode(), attempt)

    def _request(self, method: str, path: str, body: bytes | None, attempt: int) -> Any:
        endpoint = self._endpoint(attempt)
        connection = self._connection(endpoint)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read(1 << 20)
            if response.status != 200:
                raise Unclear(f"HTTP {response.status} from {endpoint}: {data[:200]!r}")
            return json.loads(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unclear(f"{endpoint}: {error!r}") from error
        finally:
            connection.close()

    def _endpoint(self, attempt: int) -> str:
        return self._config.endpoints[attempt % len(self._config.endpoints)]

    def _connection(self, endpoint: str) -> http.client.HTTPConnection:
        url = urlsplit(endpoint)
        host, port = url.hostname or "", url.port or 2379
        if url.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        try:
            tls = ssl.create_default_context(cafile=self._config.ca)
            if self._config.cert:
                tls.load_cert_chain(self._config.cert, self._config.key)
        except (OSError, ssl.SSLError) as error:
            raise Unclear(f"the TLS files for {endpoint} cannot be used: {error}") from error
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=tls)


def _is_removed(value: bytes | None) -> bool:
    return value is not None and value.startswith(REMOVED)


def acceptable(version: str) -> bool:
    """True for versions of etcd that keep acknowledged writes."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    parts = tuple(int(part) for part in match.groups())
    if parts >= (3, 6, 0):
        return True
    return any(parts[:2] == good[:2] and parts >= good for good in GOOD_VERSIONS)
