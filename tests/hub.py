"""A stand-in for the Hub on loopback: what huggingface_hub asks of it to make, fill and read a repository."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN, COMMIT = "hf_of_the_stand_in", "0" * 40


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub`: files by repository in `hub.repositories`, those of accounts in `hub.gated` refused."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.private, self.gated = {}, {}, {}
        self.objects, self.seen = {}, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def run(
        self, code: str, home: Path, *arguments, token: str | None = TOKEN
    ) -> subprocess.CompletedProcess:
        """Runs Python against this Hub, in a process of its own: the address is read when huggingface_hub starts."""
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
        }
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING"))
        } | settings
        env |= {"HF_TOKEN": token} if token else {}
        env["NO_PROXY"] = "127.0.0.1"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, body=b"", status: int = 200, **headers) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": COMMIT,
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self, repo: str) -> bool:
        status = self.server.gated.get(repo.partition("/")[0])
        if status:
            self._answer({"error": "gated"}, status, X_Error_Code="GatedRepo")
        return bool(status)

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        hub.seen.append((self.command, path))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repo, file = found.groups()
            if self._refused(repo):
                return
            if repo not in hub.repositories:
                return self._answer(b"", 401, X_Error_Code="RepoNotFound")
            if file not in hub.repositories[repo]:
                return self._answer(b"", 404, X_Error_Code="EntryNotFound")
            content = hub.repositories[repo][file]
            return self._answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path)
        if found and self._refused(found[1]):
            return
        if not found or found[1] not in hub.repositories:
            return self._answer({"error": "no such entry"}, 404, X_Error_Code="EntryNotFound")
        files = [
            {"rfilename": name, "path": name, "type": "file", "size": len(content), "oid": "0" * 40}
            for name, content in hub.repositories[found[1]].items()
        ]
        if "/tree/" in path:
            return self._answer(files)
        self._answer(
            {"id": found[1], "sha": COMMIT, "private": hub.private[found[1]], "siblings": files}
        )

    do_HEAD = do_GET

    def do_PUT(self):
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer()

    def do_POST(self):
        hub, body = self.server, self._body()
        hub.seen.append((self.command, self.path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if repo in hub.repositories:
                return self._answer(
                    {"error": "You already created it", "url": f"{hub.url}/{repo}"}, 409
                )
            hub.repositories[repo], hub.private[repo] = (
                {},
                asked.get("visibility") == "private" or bool(asked.get("private")),
            )
            return self._answer({"url": f"{hub.url}/{repo}", "name": repo, "id": repo})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if re.search("/preupload/", self.path):
            files = [
                {"path": f["path"], "shouldIgnore": False, "oid": None}
                | {"uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer(
                {"transfer": "basic", "objects": objects},
                Content_Type="application/vnd.git-lfs+json",
            )
        repo = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path)[1]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.repositories[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                hub.repositories[repo][value["path"]] = content
        self._answer(
            {
                "commitOid": COMMIT,
                "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}",
                "hookOutput": "",
            }
        )

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass
