# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt to reach a VM from outside: TCP, HTTP, ICMP, or a line over a connection that stays."""

from __future__ import annotations

import dataclasses
import http.client
import os
import re
import socket
import ssl
import struct
import time
import typing as t
import urllib.parse

from ansible_collections.kvmft.core.plugins.module_utils._drill_plan import url_of

MAX_BODY = 1 << 20  # bytes of an HTTP answer that are looked at
ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}  # RFC 792, RFC 4443
ECHO_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}


@dataclasses.dataclass(frozen=True)
class Answer:
    """`ok`, and if not why, in words that hold nothing of the request but its address."""

    ok: bool
    detail: str = ""


def attempt(check: dict[str, t.Any], host: str, timeout: float) -> Answer:
    """Try a check of type tcp, http or icmp once; `timeout` in seconds is for all of it."""
    try:
        if check["type"] == "tcp":
            socket.create_connection((host, check["port"]), timeout=timeout).close()
            return Answer(True, f"{host}:{check['port']} accepts connections")
        if check["type"] == "http":
            return _http(check, host, timeout)
        if check["type"] == "icmp":
            return _icmp(host, timeout)
    except (socket.timeout, TimeoutError):
        return Answer(False, f"{host} did not answer within {timeout:g} s")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Answer(False, f"{host}: {reason}")
    raise ValueError(f"a check of type {check['type']} is not tried from outside")


def _http(check: dict[str, t.Any], host: str, timeout: float) -> Answer:
    url = urllib.parse.urlsplit(url_of(check, host))
    until = time.monotonic() + timeout
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context()
        if not check["validate_certs"]:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            str(url.hostname), url.port, timeout=timeout, context=context
        )
    else:
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=timeout)
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", target, headers=check["headers"])
        if connection.sock is not None:
            connection.sock.settimeout(max(0.001, until - time.monotonic()))
        answer = connection.getresponse()
        body = answer.read(MAX_BODY).decode("utf-8", "replace")
    finally:
        connection.close()
    if answer.status not in check["status"]:
        wanted = " or ".join(map(str, check["status"]))
        return Answer(False, f"the status is {answer.status}, not {wanted}")
    if check["body"] and not re.search(check["body"], body):
        return Answer(False, f"the status is {answer.status}, but the body does not match")
    return Answer(True, f"the status is {answer.status}")


def _icmp(host: str, timeout: float) -> Answer:
    """An echo over a datagram socket, which Linux allows to the groups of net.ipv4.ping_group_range, or
    over a raw one, which it allows to root."""
    family, __, __, __, address = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0]
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    number = int.from_bytes(os.urandom(2), "big")
    request = _echo(ECHO_REQUEST[family], number)
    until = time.monotonic() + timeout
    try:
        connection = socket.socket(family, socket.SOCK_DGRAM, protocol)
    except PermissionError:
        try:
            connection = socket.socket(family, socket.SOCK_RAW, protocol)
        except PermissionError:
            return Answer(False, f"{host} cannot be asked, because this user may not ping; set net.ipv4.ping_group_range")
    with connection:
        connection.connect(address)
        connection.send(request)
        while True:
            connection.settimeout(max(0.001, until - time.monotonic()))
            reply = connection.recv(2048)
            if connection.type == socket.SOCK_RAW and family == socket.AF_INET:
                reply = reply[4 * (reply[0] & 15) :]  # the IP header, its length in words (RFC 791)
            if reply[0] == ECHO_REPLY[family] and reply[6:8] == struct.pack(">H", number):
                return Answer(True, f"{host} answers a ping")


def _echo(kind: int, number: int) -> bytes:
    body = b"kvmft drill"
    header = struct.pack(">BBHHH", kind, 0, 0, 0, number)
    data = header + body + b"\0" * (len(body) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return struct.pack(">BBHHH", kind, 0, ~total & 0xFFFF, 0, number) + body


class Lines:
    """Numbered markers over one TCP connection, made anew when it broke or fell silent."""

    def __init__(self, probe: dict[str, t.Any]) -> None:
        self._probe = probe
        self._connection: socket.socket | None = None
        self._rest = b""
        self.broken = 0

    def mark(self, host: str, number: int, timeout: float) -> tuple[Answer, str]:
        """Send marker `number`; the answer, and the `id` that it gave the marker, if it has one."""
        said, answer = self._ask(host, self._probe["send"].replace("{n}", str(number)), timeout)
        if said is None:
            return answer, ""
        found = re.search(self._probe["expect"].replace("{n}", str(number)), said)
        if found is None:
            return Answer(False, f"{host} gave another answer than the one expected"), ""
        return answer, (found.groupdict().get("id") or str(number))

    def verify(self, host: str, number: int, given: str, timeout: float) -> bool | None:
        """Whether marker `number`, of which the answer was acknowledged as `given`, is there. None
        when there was no answer."""
        def fill(text: str) -> str:
            return text.replace("{n}", str(number)).replace("{id}", given)

        said, __ = self._ask(host, fill(self._probe["verify_send"]), timeout)
        return None if said is None else re.search(fill(self._probe["verify_expect"]), said) is not None

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._rest = None, b""

    def _ask(self, host: str, line: str, timeout: float) -> tuple[str | None, Answer]:
        until = time.monotonic() + timeout
        had = self._connection is not None
        try:
            if self._connection is None:
                self._connection = socket.create_connection((host, self._probe["port"]), timeout)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.settimeout(timeout)
            self._connection.sendall(line.encode() + b"\n")
            while b"\n" not in self._rest:
                self._connection.settimeout(max(0.001, until - time.monotonic()))
                data = self._connection.recv(65536)
                if not data:
                    raise ConnectionError("the connection was closed")
                self._rest += data
            said, __, self._rest = self._rest.partition(b"\n")
        except OSError as error:
            self.broken += had
            self.close()
            reason = error.strerror or str(error) or type(error).__name__
            return None, Answer(False, f"{host}:{self._probe['port']}: {reason}")
        return said.decode("utf-8", "replace"), Answer(True)
