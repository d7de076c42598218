"""The demo's client, against a server that speaks just enough of PostgreSQL's protocol."""

from __future__ import annotations

import socket
import struct
import threading

import psycopg
import pytest

from tests.lab import client

REFUSALS = {
    "57P03": b"the database system is starting up",
    "3D000": b'database "demo" does not exist',
}


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def refusal(code: str) -> bytes:
    fields = b"SFATAL\0VFATAL\0C" + code.encode() + b"\0M" + REFUSALS[code] + b"\0\0"
    return message(b"E", fields)


READY = message(b"R", struct.pack(">I", 0)) + message(b"Z", b"I")


class Server:
    """Gives each connection the next of `answers`, after its start-up message."""

    def __init__(self, answers: list[bytes]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.left = list(answers)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self.left:
            sock, __ = self.listener.accept()
            data = sock.recv(1 << 16)
            if data[4:8] != struct.pack(">I", 3 << 16):  # asks for encryption first
                sock.sendall(b"N")
                data = sock.recv(1 << 16)
            if data:
                sock.sendall(self.left.pop(0))
            if self.left:
                sock.close()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def serve(*answers: bytes) -> Server:
        server = Server(list(answers))
        monkeypatch.setenv("PGPORT", str(server.port))
        monkeypatch.setenv("PGGSSENCMODE", "disable")
        monkeypatch.setattr(client, "STARTING_PAUSE", 0.01)
        return server

    return serve


def test_a_database_that_is_starting_is_waited_for(at) -> None:  # type: ignore[no-untyped-def]
    server = at(refusal("57P03"), refusal("57P03"), READY)
    client.connect("127.0.0.1").close()
    assert server.left == []


def test_any_other_refusal_is_an_error(at) -> None:  # type: ignore[no-untyped-def]
    at(refusal("3D000"), READY)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        client.connect("127.0.0.1")
