"""The part of the Hub's HTTP API that a model's upload and download use, in a thread of this process."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_right"


class FakeHub:
    """What was made on it.

    Attributes:
        commits: of each repository, the files {path: content} of each commit, by its hash.
        private: of each repository, whether it is.
        asked: (method, path) of each request.
    """

    def __init__(self):
        self.commits, self.private, self.asked = {}, {}, []
        self.url = ""

    def head_of(self, name, revision):
        """The hash of a branch or commit, None where there is none."""
        commits = self.commits.get(name, {})
        return list(commits)[-1] if revision == "main" and commits else revision if revision in commits else None

    def commit(self, name, files):
        """Adds one and returns its hash."""
        commits = self.commits[name]
        whole = {**(list(commits.values())[-1] if commits else {}), **files}
        key = hashlib.sha1(repr((len(commits), sorted(whole.items()))).encode()).hexdigest()
        commits[key] = whole
        return key


@contextlib.contextmanager
def running():
    """A hub that answers until the end of the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.hub.asked.append((self.command, self.path))
        owner, name, _, revision, *rest = self.path.split("?")[0].lstrip("/").split("/") + [""] * 4
        name, file = f"{owner}/{name}", "/".join(rest).rstrip("/")
        if name not in self.hub.commits:
            return self._answer(404, X_Error_Code="RepoNotFound")
        commit = self.hub.head_of(name, revision)
        if commit is None:
            return self._answer(404, X_Error_Code="RevisionNotFound")
        content = self.hub.commits[name][commit].get(file)
        if content is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self._answer(200, content, X_Repo_Commit=commit, ETag=tag)

    def do_POST(self):
        self.hub.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.hub.commits:
                return self._answer(409, {"error": "it is there already", "url": f"{self.hub.url}/{name}"})
            self.hub.commits[name] = {}
            # As newer and older clients ask for it.
            self.hub.private[name] = asked.get("visibility") == "private" or asked.get("private", False)
            return self._answer(200, {"url": f"{self.hub.url}/{name}"})
        _, _, _, owner, name, action, *_ = self.path.split("?")[0].split("/")
        name = f"{owner}/{name}"
        if action == "preupload":
            wanted = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": wanted})
        lines = [json.loads(line) for line in body.splitlines()]
        assert action == "commit", self.path
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        key = self.hub.commit(name, files)
        return self._answer(
            200, {"success": True, "commitOid": key, "commitUrl": f"{self.hub.url}/{name}/commit/{key}"}
        )
