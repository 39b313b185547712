"""A small in-memory Hugging Face Hub on 127.0.0.1 for tests of pushing and loading; standard library only.

with FakeHub() as hub:  # in a subprocess, before huggingface_hub is imported:
    ...                 # HF_ENDPOINT=hub.url HF_TOKEN=hf_x HF_HUB_DISABLE_XET=1 HF_HOME=<temporary folder>
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".parquet", ".nii.gz")
REPO = r"/api/(models|datasets)/([^/]+/[^/]+)"


class FakeHub:
    """Repositories as lists of commits, a commit as (sha, path -> bytes)."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], list[tuple[str, dict[str, bytes]]]] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo: str, files: dict[str, bytes], kind: str = "models") -> str:
        """Commit files, as a push would; returns the commit's sha."""
        commits = self.repos.setdefault((kind, repo), [])
        sha = hashlib.sha1(repr((repo, len(commits), sorted(files))).encode()).hexdigest()
        commits.append((sha, {**(commits[-1][1] if commits else {}), **files}))
        return sha

    def commit(self, kind: str, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get((kind, repo), [])
        if revision in (None, "main"):
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else git_sha(content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._route(GET)

    def do_HEAD(self):
        self._route(GET)

    def do_POST(self):
        self._route(POST)

    def do_PUT(self):
        self._route(PUT)

    def _route(self, routes):
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path))
        body = self._body()
        for pattern, answer in routes.items():
            match = re.fullmatch(pattern, path)
            if match:
                return answer(self, *match.groups(), body=body, query=query)
        return self._error("Unknown")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, content, status=200, kind="application/json", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, code: str, **headers):
        self._send({"error": code}, 404, X_Error_Code=code, X_Error_Message=code, **headers)

    def _missing(self, kind: str, repo: str):
        self._error("RevisionNotFound" if (kind, repo) in self.hub.repos else "RepoNotFound")


def who_am_i(handler, **_):
    token = {"accessToken": {"role": "write"}}
    handler._send({"type": "user", "name": "tester", "fullname": "T", "orgs": [{"name": "org"}], "auth": token})


def repo_info(handler, kind, repo, revision, **_):
    commit = handler.hub.commit(kind, repo, revision)
    if commit is None:
        return handler._missing(kind, repo)
    files = [{"rfilename": path} for path in sorted(commit[1])]
    return handler._send(
        {"id": repo, "modelId": repo, "sha": commit[0], "private": False, "tags": [], "siblings": files}
    )


def refs(handler, kind, repo, **_):
    branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": handler.hub.commit(kind, repo, None)[0]}
    handler._send({"branches": [branch], "converts": [], "tags": []})


def tree(handler, kind, repo, revision, base, *, query, **_):
    commit = handler.hub.commit(kind, repo, revision)
    if commit is None:
        return handler._missing(kind, repo)
    prefix = f"{base.strip('/')}/" if base else ""
    recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
    inside = {path: content for path, content in sorted(commit[1].items()) if path.startswith(prefix)}
    if prefix and not inside:
        return handler._error("EntryNotFound")
    folders = {path[:end] for path in inside for end in range(len(prefix), len(path)) if path[end] == "/"}
    entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
    entries += [file_entry(path, content) for path, content in inside.items()]
    return handler._send([entry for entry in entries if recursive or "/" not in entry["path"][len(prefix) :]])


def file_entry(path, content):
    entry = {"type": "file", "oid": git_sha(content), "size": len(content), "path": path}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 128}
    return entry


def download(handler, datasets, repo, revision, path, **_):
    commit = handler.hub.commit(datasets or "models", repo, revision)
    if commit is None:
        return handler._missing(datasets or "models", repo)
    if path not in commit[1]:
        return handler._error("EntryNotFound", X_Repo_Commit=commit[0])
    content = commit[1][path]
    headers = {"ETag": f'"{etag(path, content)}"', "X_Repo_Commit": commit[0], "Accept_Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
    if not wanted or handler.command == "HEAD":
        return handler._send(content, kind="application/octet-stream", **headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
    headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
    return handler._send(content[first : last + 1], 206, "application/octet-stream", **headers)


def create(handler, *, body, **_):
    request = json.loads(body)
    kind, repo = request.get("type", "model") + "s", f"{request.get('organization') or 'tester'}/{request['name']}"
    url = f"{handler.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}"
    if (kind, repo) in handler.hub.repos:
        return handler._send({"error": "You already created this repo", "url": url}, 409)
    handler.hub.add(repo, {".gitattributes": b""}, kind)
    return handler._send({"url": url, "name": repo, "id": repo})


def validate_card(handler, **_):
    handler._send({"errors": [], "warnings": []})


def paths_info(handler, kind, repo, revision, *, body, **_):
    paths = (json.loads(body) if body.lstrip().startswith(b"{") else parse_qs(body.decode())).get("paths", [])
    files = handler.hub.commit(kind, repo, revision)[1]
    handler._send([file_entry(path, files[path]) for path in paths if path in files])


def preupload(handler, _kind, _repo, _revision, *, body, **_rest):
    paths = [file["path"] for file in json.loads(body)["files"]]
    modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
    handler._send(
        {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
    )


def lfs_batch(handler, _repo, *, body, **_):
    def upload(oid):
        return {} if oid in handler.hub.lfs else {"actions": {"upload": {"href": f"{handler.hub.url}/_lfs/{oid}"}}}

    objects = [
        {"oid": item["oid"], "size": item["size"], **upload(item["oid"])} for item in json.loads(body)["objects"]
    ]
    handler._send({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")


def lfs_upload(handler, oid, *, body, **_):
    handler.hub.lfs[oid] = body
    handler._send(b"")


def commit(handler, kind, repo, _revision, *, body, **_):
    if (kind, repo) not in handler.hub.repos:
        return handler._missing(kind, repo)
    files = {}
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = handler.hub.lfs[value["oid"]]
    sha = handler.hub.add(repo, files, kind)
    links = {"commitUrl": f"{handler.hub.url}/{repo}/commit/{sha}", "pullRequestUrl": ""}
    return handler._send({"success": True, "commitOid": sha, "hookOutput": "", **links})


GET = {
    "/api/whoami-v2": who_am_i,
    REPO + "(?:/revision/(.+))?": repo_info,
    REPO + "/refs": refs,
    REPO + "/tree/([^/]+)(?:/(.*))?": tree,
    "/(?:(datasets)/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)": download,
}
POST = {
    "/api/repos/create": create,
    "/api/validate-yaml": validate_card,
    REPO + "/paths-info/(.+)": paths_info,
    REPO + "/preupload/(.+)": preupload,
    r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": lfs_batch,
    REPO + "/commit/(.+)": commit,
}
PUT = {"/_lfs/(.+)": lfs_upload}
