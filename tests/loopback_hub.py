"""A Hub on the loopback interface: repositories in memory, with commits, LFS, tokens, organisations and faults.

It speaks the part of the Hub's protocol that huggingface_hub 2 uses to create, upload, list and download. Start clients
with `LoopbackHub.environment`, since they read the Hub's address when they are imported.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard

REPO = r"(?P<repo>(?:spaces/)?[^/]+/[^/]+?)"  # a Space's name begins with spaces/
API = rf"/api/(?:models/|(?=spaces/)){REPO}"


@dataclass
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        blob = self.content
        if self.lfs:
            blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(blob)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class User:
    """The owner of a token, and what it may do: "read", "write", or "fineGrained" to write to the `scopes`."""

    name: str
    role: str = "write"
    scopes: tuple[str, ...] = ()


@dataclass
class Fault:
    """What the next `times` requests that match get instead of an answer."""

    request: str  # a pattern of "POST /api/repos/create" and the like
    status: int | None  # None: the connection is reset
    times: int
    headers: dict[str, str]


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, dict[str, File]]] = field(default_factory=list)  # sha and files, the oldest first

    def commit(self, files: dict[str, File]) -> str:
        listing = sorted((name, file.oid) for name, file in files.items())
        sha = hashlib.sha1(repr((len(self.commits), listing)).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str | None) -> tuple[str, dict[str, File]]:
        if revision in (None, "main"):
            return self.commits[-1]
        for sha, files in self.commits:
            if sha == revision:
                return sha, files
        raise HubError(404, "RevisionNotFound")


def owner_of(name: str) -> str:
    return name.removeprefix("spaces/").split("/")[0]


class HubError(Exception):
    """An answer other than 200, with the code by which huggingface_hub tells errors apart."""

    def __init__(self, status: int, code: str = ""):
        super().__init__(status, code)
        self.status, self.code = status, code


class LoopbackHub:
    """A Hub that runs within a `with` block.

    Args:
        users (`dict[str, str | User]`): Token -> user. A user may write to repositories under that name.
        organisations (`dict[str, dict[str, str]]`): Organisation -> user name -> "read", "contributor" (may make
            repositories, and write to no other), "write" or "admin".
    """

    def __init__(self, users: dict[str, str | User], organisations: dict[str, dict[str, str]] | None = None):
        self.users = {token: user if isinstance(user, User) else User(user) for token, user in users.items()}
        self.organisations = organisations or {}
        self.faults: list[Fault] = []
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}  # LFS objects by sha256
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """Return the environment variables of a client with its own cache, which is logged in if there is a token."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)}
        return variables | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})

    def fail(self, request: str, status: int | None, times: int = 1, **headers: str):
        """Make the next requests that match fail, with a status and headers or with a reset of the connection."""
        self.faults.append(Fault(request, status, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def next_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return None

    # ---- What the routes do -----------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, body: bytes, user: User | None) -> tuple[int, bytes | dict | list, dict]:
        for route_method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and route_method == method:
                with self.lock:
                    answer = action(self, user=user, body=body, **match.groupdict())
                return answer if isinstance(answer, tuple) else (200, answer, {})
        raise HubError(404, "NoSuchRoute")

    def role(self, user: User | None, name: str) -> str | None:
        """Return the role of a user for the repositories of an owner, or None."""
        owner = owner_of(name)
        if user is None or user.name == owner:
            return user and "admin"
        return self.organisations.get(owner, {}).get(user.name)

    def may_write(self, user: User | None, name: str, roles: tuple[str, ...]) -> bool:
        scoped = user and (user.role == "write" or {name, owner_of(name)} & set(user.scopes))
        return bool(scoped) and self.role(user, name) in roles

    def readable(self, name: str, user: User | None) -> Repository:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not self.role(user, name)):
            raise HubError(404 if user else 401, "RepoNotFound")
        return repository

    def writable(self, name: str, user: User | None) -> Repository:
        repository = self.readable(name, user)
        if not self.may_write(user, name, roles=("admin", "write")):
            raise HubError(403 if user else 401)
        return repository

    def auth_check(self, user, body, repo):
        self.writable(repo, user)
        return {}

    def whoami(self, user, body):
        if not user:
            raise HubError(401)
        groups = {name: members[user.name] for name, members in self.organisations.items() if user.name in members}
        token = {"role": user.role}
        if user.role == "fineGrained":
            scopes = [{"entity": {"name": name}, "permissions": ["repo.write"]} for name in user.scopes]
            token["fineGrained"] = {"scoped": scopes}
        orgs = [{"name": name, "roleInOrg": role} for name, role in groups.items()]
        return {"name": user.name, "type": "user", "orgs": orgs, "auth": {"accessToken": token}}

    def validate_card(self, user, body):
        try:
            ModelCard(json.loads(body)["content"])
        except Exception as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        return {"errors": [], "warnings": []}

    def create(self, user, body):
        wish = json.loads(body)
        if not user:
            raise HubError(401)
        kind = "spaces/" if wish.get("type") == "space" else ""
        name = f"{kind}{wish.get('organization') or user.name}/{wish['name']}"
        if not self.may_write(user, name, roles=("admin", "write", "contributor")):
            raise HubError(403)
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            return 409, answer, {}
        self.repositories[name] = Repository(private=wish.get("private") is True or wish.get("visibility") == "private")
        self.repositories[name].commit({})
        return answer

    def preupload(self, user, body, repo, revision):
        _, files = self.writable(repo, user).at(revision)

        def plan(file):
            lfs = file["path"].endswith(".safetensors") or file["size"] > 100_000
            old = files.get(file["path"])
            oid = (old.sha256 if old.lfs else old.oid) if old else None
            return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}

        return {"files": [plan(file) for file in json.loads(body)["files"]]}

    def lfs_batch(self, user, body, repo):
        self.writable(repo, user)

        def plan(wanted):
            actions = {
                "upload": {"href": f"{self.url}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{self.url}/lfs/verify"},
            }
            return dict(wanted) if wanted["oid"] in self.uploads else {**wanted, "actions": actions}

        return {"transfer": "basic", "objects": [plan(wanted) for wanted in json.loads(body)["objects"]]}

    def lfs_put(self, user, body, sha256):
        if hashlib.sha256(body).hexdigest() != sha256:
            raise HubError(400, "BadDigest")
        self.uploads[sha256] = body
        return {}

    def lfs_verify(self, user, body):
        wanted = json.loads(body)
        if len(self.uploads.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(422)
        return {}

    def commit(self, user, body, repo, revision):
        repository = self.writable(repo, user)
        files = dict(repository.at(revision)[1])
        for line in body.splitlines():
            change = json.loads(line)
            value = change["value"]
            match change["key"]:
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
                case "lfsFile":
                    if value["oid"] not in self.uploads:
                        raise HubError(400, "MissingLfsObject")
                    files[value["path"]] = File(self.uploads[value["oid"]], lfs=True)
                case "deletedFile":
                    files.pop(value["path"], None)
        sha = repository.commit(files)
        return {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True}

    def info(self, user, body, repo, revision=None):
        repository = self.readable(repo, user)
        sha, files = repository.at(revision)
        siblings = [{"rfilename": name} for name in files]
        return {
            "id": repo,
            "modelId": repo,
            "private": repository.private,
            "sha": sha,
            "tags": [],
            "siblings": siblings,
        }

    def tree(self, user, body, repo, revision, folder=""):
        _, files = self.readable(repo, user).at(revision)

        def entry(name, file):
            lfs = {"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}} if file.lfs else {}
            return {"type": "file", "path": name, "size": len(file.content), "oid": file.oid, **lfs}

        return [entry(name, file) for name, file in files.items() if name.startswith(folder or "")]

    def resolve(self, user, body, repo, revision, path):
        sha, files = self.readable(repo, user).at(revision)
        if path not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
        file = files[path]
        etag = f'"{file.sha256 if file.lfs else file.oid}"'
        size = str(len(file.content))
        headers = {"ETag": etag, "X-Repo-Commit": sha, "X-Linked-Size": size, "X-Linked-ETag": etag}
        return 200, file.content, headers


ROUTES = [
    ("GET", r"/api/whoami-v2", LoopbackHub.whoami),
    ("GET", rf"{API}/auth-check/write", LoopbackHub.auth_check),
    ("POST", r"/api/validate-yaml", LoopbackHub.validate_card),
    ("POST", r"/api/repos/create", LoopbackHub.create),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", LoopbackHub.preupload),
    ("POST", rf"{API}/commit/(?P<revision>.+)", LoopbackHub.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", LoopbackHub.lfs_batch),
    ("POST", r"/lfs/verify", LoopbackHub.lfs_verify),
    ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", LoopbackHub.lfs_put),
    ("GET", API, LoopbackHub.info),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", LoopbackHub.info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", LoopbackHub.tree),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", LoopbackHub.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would delay each answer by 40 ms
    hub: LoopbackHub

    def respond(self):
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        fault = self.hub.next_fault(request)
        if fault and fault.status is None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with RST
            self.connection.close()
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        user = self.hub.users.get(token)
        if fault:
            return self.send(fault.status, b"<html>out of order</html>", {"Content-Type": "text/html", **fault.headers})
        try:
            if token and not user:
                raise HubError(401, "InvalidCredentials")
            method = "GET" if self.command == "HEAD" else self.command
            status, content, headers = self.hub.answer(method, path, body, user)
        except HubError as error:
            status, content, headers = error.status, {"error": error.code}, {"X-Error-Code": error.code}
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send(status, content, headers)

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def log_message(self, *arguments):
        """Print nothing. The hub records the requests."""
