"""As much of AWX's REST API as awx.awx needs to create and compare objects, over HTTP.

AWX itself runs on Kubernetes only; the modules, the playbook and the catalogue are the real ones.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

API = "/api/v2/"
ASSOCIATIONS = ("credentials", "success_nodes", "failure_nodes", "always_nodes", "labels", "instance_groups")
TYPES = {"job_templates": "job_template", "projects": "project", "inventories": "inventory"}


@dataclass
class Controller:
    """What was stored: objects by endpoint and number, with surveys and associations beside them."""

    url: str = ""
    objects: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    surveys: dict[int, dict[str, Any]] = field(default_factory=dict)
    associations: dict[tuple[str, int, str], list[int]] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)

    def add(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        """A new object."""
        number = sum(map(len, self.objects.values())) + 1
        url = f"{API}{endpoint}/{number}/"
        fields = {**fields, "id": number, "url": url, "type": TYPES.get(endpoint, endpoint),
                  "summary_fields": {}, "related": {"survey_spec": f"{url}survey_spec/"}}  # fmt: skip
        self.objects.setdefault(endpoint, {})[number] = fields
        return fields

    def named(self, endpoint: str) -> dict[str, dict[str, Any]]:
        """Objects of `endpoint` by their names."""
        return {each["name"]: each for each in self.objects.get(endpoint, {}).values()}

    def find(self, endpoint: str, query: dict[str, str]) -> list[dict[str, Any]]:
        """Objects whose fields are what `query` says."""
        endpoints = tuple(TYPES) if endpoint == "unified_job_templates" else (endpoint,)
        found = [each for name in endpoints for each in self.objects.get(name, {}).values()]
        return [each for each in found
                if all(str(each.get(key, "")) == value for key, value in query.items()
                       if not key.startswith(("page", "or__")))]  # fmt: skip

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and JSON of one request."""
        parts = path.removeprefix(API).strip("/").split("/")
        if method != "GET":
            self.writes.append(f"{method} {path}")
        match parts:
            case [endpoint] if method == "GET":
                return 200, _page(self.find(endpoint, query))
            case [endpoint]:
                return 201, self.add(endpoint, **body)
            case [endpoint, number]:
                found = self.objects[endpoint][int(number)]
                found.update(body if method == "PATCH" else {})
                return 200, found
            case [_, number, "survey_spec"]:
                if method == "POST":
                    self.surveys[int(number)] = body
                return 200, self.surveys.get(int(number), {})
            case [endpoint, number, name] if name in ASSOCIATIONS:
                known = self.associations.setdefault((endpoint, int(number), name), [])
                if method == "POST":
                    known.append(int(body["id"]))
                    return 204, None
                return 200, _page([{"id": each} for each in known])
            case [endpoint, number, "create_approval_template"]:
                made = self.add("workflow_approval_templates", **body)
                self.objects[endpoint][int(number)]["related"]["unified_job_template"] = made["url"]
                return 201, made
        raise LookupError(f"{method} {path}")


def _page(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"count": len(rows), "next": None, "previous": None, "results": rows}


@contextmanager
def controller() -> Iterator[Controller]:
    """A controller that listens on this machine."""
    state = Controller()
    for endpoint, names in {"organizations": ["Default"], "credential_types": ["Machine"]}.items():
        for name in names:
            state.add(endpoint, name=name)

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else {}
            parts = urlsplit(self.path)
            status, value = state.answer(self.command, re.sub("/+", "/", parts.path),
                                         dict(parse_qsl(parts.query)), body)  # fmt: skip
            data = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = _do  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
