"""A server on this machine that answers what the Hugging Face Hub answers to push and pull."""

import base64
import json
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "a" * 40


class HubServer(ThreadingHTTPServer):
    """``repos`` by ``user/name``, each its files by path.

    ``refusal``: what is answered to everything, if not None; ``card_error``: what is said against the card of a commit.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _handler(self))
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refusal: int | None = None
        self.card_error: str | None = None
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def info(self, repo: str) -> dict[str, Any]:
        """What the hub says of a repository."""
        names = [{"rfilename": name} for name in self.repos[repo]]
        facts: dict[str, Any] = {"private": self.private.get(repo, False), "gated": False, "disabled": False}
        facts |= {"tags": [], "downloads": 0, "likes": 0}
        times = dict.fromkeys(("lastModified", "createdAt"), "2026-01-01T00:00:00.000Z")
        return {"_id": "1", "id": repo, "modelId": repo, "sha": SHA, "siblings": names, **facts, **times}


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - one branch for each request of the hub's
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def _answer(self, body: bytes) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(f"{self.command} {path}")
            if hub.refusal is not None:
                return self._send(hub.refusal, b'{"error": "no"}')
            parts = path.split("/")
            if path == "api/validate-yaml":
                if hub.card_error is None:
                    return self._json({"errors": [], "warnings": []})
                return self._send(400, json.dumps({"errors": [{"message": hub.card_error}]}).encode())
            if path == "api/repos/create":
                return self._create(json.loads(body))
            repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
            if repo not in hub.repos:
                return self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            if parts[0] != "api":
                return self._file(repo, "/".join(parts[4:]))
            return self._api(repo, "".join(parts[4:5]), body)

        def _create(self, wanted: dict[str, Any]) -> None:
            repo = f"{wanted['organization']}/{wanted['name']}"
            url = {"url": f"{hub.url}/{repo}", "name": repo, "id": "1"}
            if repo in hub.repos:
                return self._send(409, json.dumps({"error": "You already created this model repo", **url}).encode())
            hub.repos[repo] = {}
            hub.private[repo] = wanted.get("visibility") == "private" or wanted.get("private") is True
            return self._json(url)

        def _api(self, repo: str, verb: str, body: bytes) -> None:
            files = hub.repos[repo]
            if verb == "preupload":
                how = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                return self._json({"files": [{"path": file["path"], **how} for file in json.loads(body)["files"]]})
            if verb == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del files[line["value"]["path"]]
                url = f"{hub.url}/{repo}/commit/{SHA}"
                return self._json({"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})
            if verb == "tree":
                entries = [{"type": "file", "path": k, "size": len(v), "oid": sha1(v).hexdigest()} for k, v in files.items()]
                return self._json(entries)
            return self._json(hub.info(repo))

        def _file(self, repo: str, name: str) -> None:
            content = hub.repos[repo].get(name)
            if content is None:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self._send(200, content, {"X-Repo-Commit": SHA, "ETag": f'"{sha1(content).hexdigest()}"'})

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

    return Handler
