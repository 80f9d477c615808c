"""What the loopback Hub and its CDN answer: requests to `Reply`s. Plain functions over repos, no sockets."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from time import time
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from tests.support.hub_faults import Reply, Request
from tests.support.hub_repos import Content, Repo

_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_CACHED = re.compile(
    r"/api/resolve-cache/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)"
)
_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+(?:/[^/]+)?)"
    r"(?:/(?P<call>revision|tree|paths-info|refs|safetensors-metadata)(?:/(?P<rest>.+))?)?"
)
_SINGLE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class RefusalError(Exception):
    """The answer is an error: its status, the Hub's code for it, and what the Hub says."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Router:
    """The repos that a Hub and its CDN know, and what they answer about them.

    Attributes:
        repos: (kind, repo id) -> repo.
        invalid_tokens: Tokens without an account: expired or mistyped. Every other token is some account's.
        metadata_api: Whether `/safetensors-metadata` is offered.
        small_redirects: Whether small files answer 307 to a relative URL first, as the Hub sometimes does.
        signature_seconds: How long a signed URL of the CDN can be used.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.invalid_tokens: set[str] = set()
        self.metadata_api = True
        self.small_redirects = False
        self.signature_seconds = 3600
        self.cdn_url = ""
        self._secret = 0

    def expire_signatures(self) -> None:
        """Make the CDN refuse all the URLs that were signed until now."""
        self._secret += 1

    def answer(self, request: Request, raw_path: str, body: bytes) -> Reply:
        """The answer of the server that `request` came to, before any fault."""
        try:
            if request.server == "cdn":
                return self._cdn(request)
            if request.headers.get("authorization", "").removeprefix("Bearer ") in self.invalid_tokens:
                raise RefusalError(401, "", "Invalid credentials in Authorization header")
            for pattern, respond in self._routes():
                if match := pattern.fullmatch(raw_path):
                    parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    return respond(request, parts, body)
            raise RefusalError(404, "", f"Cannot {request.method} {request.path}")
        except RefusalError as refusal:
            reply = json_reply({"error": refusal.message}, refusal.status)
            if refusal.code:
                reply.headers["X-Error-Code"] = refusal.code
            reply.headers["X-Error-Message"] = refusal.message
            return reply

    def _routes(self) -> list[tuple[re.Pattern[str], Callable[[Request, dict[str, str], bytes], Reply]]]:
        return [(_CACHED, self._cached), (_RESOLVE, self._resolve), (_API, self._api)]

    def _visible(self, request: Request, kind: str, repo_id: str) -> Repo:
        repo = self.repos.get((kind, repo_id))
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.private and token not in repo.accepted):
            # As the Hub does: to a stranger, what does not exist and what is private look the same.
            if token:
                raise RefusalError(404, "RepoNotFound", "Repository not found")
            raise RefusalError(401, "RepoNotFound", "Invalid username or password.")
        return repo

    def _api(self, request: Request, parts: dict[str, str], body: bytes) -> Reply:
        repo = self._visible(request, parts["kind"], parts["repo"])
        call, rest = parts.get("call", "revision"), parts.get("rest", "")
        if call == "refs":
            return json_reply(_refs(repo))
        if call == "safetensors-metadata":
            if not self.metadata_api:
                raise RefusalError(404, "", "Not found")
            return json_reply(repo.safetensors_metadata(_commit(repo, "main"), rest))
        if call == "tree":
            revision, folder = _split_revision(repo, rest)
            tree = repo.tree(_commit(repo, revision), folder, recursive=_is_on(request.query.get("recursive")))
            if tree is None:
                raise RefusalError(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
            return json_reply(tree)
        commit = _commit(repo, rest or "main")
        if call == "paths-info":
            return json_reply(repo.paths_info(commit, _posted_paths(request, body)))
        return json_reply(repo.description(commit, with_blobs=_is_on(request.query.get("blobs"))))

    def _resolve(self, request: Request, parts: dict[str, str], _body: bytes) -> Reply:
        kind = "datasets" if "kind" in parts else "models"
        repo, commit, content = self._file(request, kind, parts)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if content.large:
            location = self._sign(f"/{kind}/{repo.repo_id}/{commit}/{parts['file']}")
            headers |= {
                "Location": location,
                "X-Linked-ETag": f'"{content.etag}"',
                "X-Linked-Size": str(content.size),
            }
            return text_reply(f"Found. Redirecting to {location}", 302, headers)
        if self.small_redirects:
            location = quote(f"/api/resolve-cache/{kind}/{repo.repo_id}/{commit}/{parts['file']}")
            return text_reply("Temporary Redirect", 307, headers | {"Location": location})
        return file_reply(request, content, headers | {"ETag": f'"{content.etag}"'})

    def _cached(self, request: Request, parts: dict[str, str], _body: bytes) -> Reply:
        _, commit, content = self._file(request, parts["kind"], parts)
        return file_reply(request, content, {"X-Repo-Commit": commit, "ETag": f'"{content.etag}"'})

    def _file(self, request: Request, kind: str, parts: dict[str, str]) -> tuple[Repo, str, Content]:
        repo = self._visible(request, kind, parts["repo"])
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if repo.gated and token not in repo.accepted:
            where = f"Access to {kind.removesuffix('s')} {repo.repo_id} is restricted"
            if not token:
                raise RefusalError(401, "GatedRepo", f"{where}. You must have access to it and be authenticated.")
            raise RefusalError(403, "GatedRepo", repo.refusal or f"{where} and you are not in the authorized list.")
        commit = _commit(repo, parts["revision"])
        content = repo.commits[commit].get(parts["file"])
        if content is None:
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        return repo, commit, content

    def _sign(self, path: str) -> str:
        expires = f"{time() + self.signature_seconds:.3f}"
        signature = self._signature(path, expires)
        return f"{self.cdn_url}{quote(path)}?X-Amz-Expires={self.signature_seconds}&e={expires}&Signature={signature}"

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(b"%d" % self._secret, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()

    def _cdn(self, request: Request) -> Reply:
        expires = request.query.get("e", "0")
        if request.query.get("Signature") != self._signature(request.path, expires) or time() > float(expires):
            # As S3 answers; a signature of before `expire_signatures` counts as one that has expired.
            reason = "<Message>Request has expired</Message>" if "Signature" in request.query else ""
            body = f"<Error><Code>AccessDenied</Code>{reason}</Error>"
            return text_reply(body, 403, {"Content-Type": "application/xml"})
        for (kind, repo_id), repo in self.repos.items():
            if request.path.startswith(prefix := f"/{kind}/{repo_id}/"):
                commit, _, file = request.path.removeprefix(prefix).partition("/")
                content = repo.commits[commit][file]
                # Storage has its own idea of an ETag; it is not the sha256 that the Hub speaks of.
                headers = {"ETag": f'"{content.sha256[:32]}"', "Accept-Ranges": "bytes"}
                return file_reply(request, content, headers)
        return text_reply("<Error><Code>NoSuchKey</Code></Error>", 404, {"Content-Type": "application/xml"})


def file_reply(request: Request, content: Content, headers: dict[str, str]) -> Reply:
    """A file, or the single range of it that was asked for; several ranges at once get the whole file."""
    headers = headers | {"Content-Type": "application/octet-stream"}
    match = _SINGLE_RANGE.fullmatch(request.range or "")
    if match is None or match.groups() == ("", ""):
        return Reply(
            status=200, headers=headers, chunks=lambda: content.read(0, content.size), length=content.size,
            content=content,
        )  # fmt: skip
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1 if last else content.size, content.size)
    else:
        start, stop = max(content.size - int(last), 0), content.size
    if start >= stop:
        return text_reply("Range not satisfiable", 416, {"Content-Range": f"bytes */{content.size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
    return Reply(
        status=206, headers=headers, chunks=lambda: content.read(start, stop - start), length=stop - start,
        content=content, start=start,
    )  # fmt: skip


def json_reply(value: Any, status: int = 200) -> Reply:
    return text_reply(json.dumps(value), status, {"Content-Type": "application/json; charset=utf-8"})


def text_reply(text: str, status: int, headers: dict[str, str]) -> Reply:
    body = text.encode()
    return Reply(
        status=status, headers={"Content-Type": "text/plain"} | headers, chunks=lambda: iter([body]), length=len(body)
    )


def _commit(repo: Repo, revision: str) -> str:
    commit = repo.resolve(revision)
    if commit is None:
        raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _split_revision(repo: Repo, rest: str) -> tuple[str, str]:
    """`refs/pr/1/folder` is revision `refs/pr/1` and `folder`: the longest known revision wins."""
    parts = rest.split("/")
    for count in range(len(parts), 0, -1):
        if repo.resolve("/".join(parts[:count])):
            return "/".join(parts[:count]), "/".join(parts[count:])
    return parts[0], "/".join(parts[1:])


def _refs(repo: Repo) -> dict[str, list[dict[str, str]]]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in repo.refs.items()
    ]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}


def _posted_paths(request: Request, body: bytes) -> list[str]:
    if "json" in request.headers.get("content-type", ""):
        paths = json.loads(body)["paths"]
        return [paths] if isinstance(paths, str) else list(paths)
    return parse_qs(body.decode()).get("paths", [])


def _is_on(value: str | None) -> bool:
    return (value or "").lower() in ("true", "1")
