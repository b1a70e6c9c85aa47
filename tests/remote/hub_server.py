"""Enough of the Hugging Face Hub for datasets: reading, and uploads over the plain LFS route."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import quote, unquote

from tests.remote.servers import Reply, Request, Server, ranged


def blob_id(data: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(Server):
    """One dataset, `repo`; its files by commit. What `is_lfs` says so is served by `storage`.

    `storage` is the server that LFS files are redirected to; it stands for another host.
    """

    def __init__(self, storage: StorageServer, repo: str = "lab/corpus") -> None:
        self.storage, self.repo = storage, repo
        self.exists = True
        self.private = False
        self.gated = False  # only with `token`
        self.token = "hf_goodtokengoodtoken"
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.page = 3
        self.log: list[list[str]] = []  # paths of each commit that was made
        self.created: list[dict] = []
        self.ignored: set[str] = set()  # what a .gitignore of the repository names
        super().__init__()
        self.commit({})

    def is_lfs(self, path: str, size: int) -> bool:
        return path.endswith((".tar", ".parquet", ".arrow")) or size > 1 << 20

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Put a commit with these files on top; gives its id."""
        base = self.commits.get(self.refs.get(ref, self.refs.get("main", "")), {})
        sha = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = {**base, **files}
        self.refs[ref] = sha
        for path, data in files.items():
            if self.is_lfs(path, len(data)):
                self.storage.objects[hashlib.sha256(data).hexdigest()] = data
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]

    def reply(self, request: Request) -> Reply:
        if request.path == "/api/repos/create":
            self.created.append(json.loads(request.body))
            if self.exists:
                return _json({"error": "exists", "url": ""}, 409)
            about = self.created[-1]
            private = about.get("private") or about.get("visibility") == "private"
            self.exists, self.private = True, bool(private)
            return _json({"url": f"{self.url}/datasets/{self.repo}"})
        if request.path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if request.path == f"/datasets/{self.repo}.git/info/lfs/objects/batch":
            return self._allowed(request) or self._batch(request)
        match = re.match(rf"/(?:api/)?datasets/{re.escape(self.repo)}(?:/|$)", request.path)
        if match is None or not self.exists:
            return _error(404, "RepoNotFound")
        rest = request.path[match.end() :]
        if request.path.startswith("/api/"):
            return self._api(request, rest)
        return self._allowed(request) or self._resolve(request, rest)

    def _allowed(self, request: Request) -> Reply | None:
        known = request.headers.get("authorization") == f"Bearer {self.token}"
        if self.gated and not known:
            return _error(403 if "authorization" in request.headers else 401, "GatedRepo")
        return None

    def _api(self, request: Request, rest: str) -> Reply:
        kind, _, rest = rest.partition("/")
        if kind == "":
            return self._info("main")
        if kind == "revision":
            return self._info(rest)
        refused = self._allowed(request)  # the Hub tells of a gated dataset, not of its files
        if refused is not None:
            return refused
        if kind in ("preupload", "commit"):
            if request.headers.get("authorization") != f"Bearer {self.token}":
                return _error(401 if "authorization" not in request.headers else 403, "")
            revision = unquote(rest)
            if revision not in self.refs:
                return _error(404, "RevisionNotFound")
            change = self._preupload if kind == "preupload" else self._commit
            return change(request, revision)
        if kind == "branch":
            self.refs[unquote(rest)] = self.refs["main"]
            return _json({})
        revision, _, path = rest.partition("/")
        files = self._at(revision)
        if files is None:
            return _error(404, "RevisionNotFound")
        if kind == "tree":
            return self._tree(request, files, revision, path)
        assert kind == "paths-info", request.path
        names = _form(request)["paths"]
        return _json([self._file(name, files[name]) for name in names if name in files])

    def _at(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.refs.get(revision, revision))

    def _info(self, revision: str) -> Reply:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            return _error(404, "RevisionNotFound")
        about = {"id": self.repo, "sha": sha, "private": self.private, "siblings": [], "tags": []}
        return _json(about)

    def _file(self, path: str, data: bytes) -> dict:
        out = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        if self.is_lfs(path, len(data)):
            oid = hashlib.sha256(data).hexdigest()
            out["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return out

    def _tree(self, request: Request, files: dict, revision: str, folder: str) -> Reply:
        prefix = f"{folder}/" if folder else ""
        deep = request.query.get("recursive", ["False"])[0].lower() in ("true", "1")
        rows = {}
        for path, data in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            head, mark, _ = path[len(prefix) :].partition("/")
            if mark:
                rows[prefix + head] = {"type": "directory", "path": prefix + head, "oid": "d" * 40}
            if deep or not mark:
                rows[path] = self._file(path, data)
        if folder and not rows:
            return _error(404, "EntryNotFound")
        start = int(request.query.get("cursor", ["0"])[0])
        page = [rows[name] for name in sorted(rows)][start : start + self.page]
        headers = {}
        if start + self.page < len(rows):
            place = f"{self.url}/api/datasets/{self.repo}/tree/{revision}/{quote(folder)}"
            query = f"recursive={deep}&expand=False&cursor={start + self.page}"
            headers["Link"] = f'<{place}?{query}>; rel="next"'
        return _json(page, headers=headers)

    def _resolve(self, request: Request, rest: str) -> Reply:
        kind, revision, path = rest.split("/", 2)
        assert kind == "resolve", request.path
        files = self._at(revision)
        if files is None:
            return _error(404, "RevisionNotFound")
        if path not in files:
            return _error(404, "EntryNotFound")
        data = files[path]
        if not self.is_lfs(path, len(data)):
            return ranged(request, data, f'"{blob_id(data)}"')
        oid = hashlib.sha256(data).hexdigest()
        return Reply(302, b"", {"Location": self.storage.address(oid), "X-Linked-Etag": f'"{oid}"'})

    def _preupload(self, request: Request, revision: str) -> Reply:
        answers = []
        files = self.commits[self.refs[revision]]
        for item in json.loads(request.body)["files"]:
            path = item["path"]
            lfs = self.is_lfs(path, item["size"])
            now = files.get(path)
            known = None
            if now is not None:
                known = hashlib.sha256(now).hexdigest() if lfs else blob_id(now)
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": path in self.ignored,
                    "oid": known,
                }
            )
        return _json({"files": answers})

    def _batch(self, request: Request) -> Reply:
        objects = []
        for item in json.loads(request.body)["objects"]:
            if item["oid"] not in self.storage.objects:
                href = f"{self.storage.other}/upload/{item['oid']}?X-Amz-Signature=SIGNED"
                item = {**item, "actions": {"upload": {"href": href}}}
            objects.append(item)
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, request: Request, revision: str) -> Reply:
        files, gone = {}, set()
        for line in request.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.storage.objects:
                    return _error(400, "", "an LFS object is missing")
                files[value["path"]] = self.storage.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                gone.add(value["path"])
        if gone - set(self.commits[self.refs[revision]]):
            return _error(404, "EntryNotFound", "A file with this name doesn't exist")
        sha = self.commit(files, revision)
        self.commits[sha] = {k: v for k, v in self.commits[sha].items() if k not in gone}
        self.log.append(sorted([*files, *(f"-{name}" for name in gone)]))
        url = f"{self.url}/datasets/{self.repo}/commit/{sha}"
        return _json({"commitUrl": url, "commitOid": sha, "success": True})


class StorageServer(Server):
    """Where LFS files lie: signed addresses that must not come with a token."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.expired = 0  # so many signatures are refused from now on
        super().__init__()

    def address(self, oid: str) -> str:
        return f"{self.other}/{oid}?X-Amz-Signature=SIGNED&X-Amz-Expires=60"

    def reply(self, request: Request) -> Reply:
        if "authorization" in request.headers:
            return Reply(400, b"a token was sent to another host")
        if request.query.get("X-Amz-Signature") != ["SIGNED"]:
            return Reply(403, b"not signed")
        oid = request.path.rpartition("/")[2]
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != oid:
                return Reply(400, b"other bytes")
            self.puts.append(oid)
            self.objects[oid] = request.body
            return Reply(200)
        if self.expired:
            self.expired -= 1
            return Reply(403, b"expired")
        return ranged(request, self.objects[oid])


def _json(value: object, code: int = 200, headers: dict[str, str] | None = None) -> Reply:
    body = json.dumps(value).encode()
    return Reply(code, body, {"Content-Type": "application/json", **(headers or {})})


def _error(code: int, name: str, message: str = "no") -> Reply:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": name} if name else {})
    return _json({"error": message}, code, headers)


def _form(request: Request) -> dict[str, list[str]]:
    from urllib.parse import parse_qs

    return parse_qs(request.body.decode())
