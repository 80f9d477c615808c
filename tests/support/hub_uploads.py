"""What the Hub answers to uploads: who somebody is, repos are made, a commit carries its files (none in storage)."""

import base64
import json
import re
from typing import Any

import huggingface_hub.constants
import pytest

from tests.support.hub_faults import Reply, Request
from tests.support.hub_routes import RefusalError, Router, json_reply
from tests.support.loopback_hub import LoopbackHub

_CREATE = re.compile(r"/api/repos/create")
_WHO = re.compile(r"/api/whoami-v2")
_CHECK = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/auth-check/write")
_YAML = re.compile(r"/api/validate-yaml")
_BRANCH = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)")
_PREUPLOAD = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>.+)")
_COMMIT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>.+)")


class UploadRouter(Router):
    """A router that takes commits, from the accounts whose tokens are `writers`.

    Attributes:
        accounts: By token, what the Hub says about its account; by default the writers are `me`.
        created: Repos that were made, with what was asked for.
        messages: Of the commits.
        refuses_commits: The account's storage is full: everything is allowed but a commit.
    """

    def __init__(self, hub: LoopbackHub, writers: set[str]) -> None:
        super().__init__()
        self.cdn_url, self.hub, self.writers = hub.cdn_endpoint, hub, writers
        self.created: dict[str, dict[str, object]] = {}
        self.messages: list[str] = []
        self.refuses_commits = False
        self.accounts: dict[str, dict[str, Any]] = {
            token: {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}} for token in writers
        }

    def _routes(self) -> list[Any]:
        own = [
            (_CREATE, self._create),
            (_WHO, self._who),
            (_CHECK, self._check),
            (_YAML, lambda *_: json_reply({"errors": [], "warnings": []})),
            (_BRANCH, self._branch),
            (_PREUPLOAD, self._preupload),
            (_COMMIT, self._commit),
        ]
        return [*own, *super()._routes()]

    def _may(self, request: Request) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.writers:
            raise RefusalError(403 if token else 401, "", "You don't have the rights to create a model")

    def _who(self, request: Request, _parts: dict[str, str], _body: bytes) -> Reply:
        account = self.accounts.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if account is None:
            raise RefusalError(401, "", "Invalid username or password.")
        return json_reply(account)

    def _check(self, request: Request, parts: dict[str, str], _body: bytes) -> Reply:
        self._visible(request, "models", parts["repo"])
        self._may(request)
        return json_reply({})

    def _create(self, request: Request, _parts: dict[str, str], body: bytes) -> Reply:
        self._may(request)
        wanted = json.loads(body)
        repo_id = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if ("models", repo_id) in self.repos:
            reply = json_reply({"error": "You already created this model repo", "url": self._url(repo_id)}, 409)
        else:
            private = bool(wanted.get("private") or wanted.get("visibility") == "private")
            self.hub.add_repo(repo_id, {".gitattributes": ""}, private=private, accepted=self.writers)
            self.created[repo_id] = wanted
            reply = json_reply({"url": self._url(repo_id), "name": repo_id})
        return reply

    def _branch(self, request: Request, parts: dict[str, str], _body: bytes) -> Reply:
        self._may(request)
        repo = self.repos["models", parts["repo"]]
        repo.refs[parts["branch"]] = repo.refs["main"]
        return json_reply({})

    def _preupload(self, request: Request, _parts: dict[str, str], body: bytes) -> Reply:
        self._may(request)
        paths = [entry["path"] for entry in json.loads(body)["files"]]
        return json_reply(
            {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths]}
        )

    def _commit(self, request: Request, parts: dict[str, str], body: bytes) -> Reply:
        self._may(request)
        if self.refuses_commits:
            raise RefusalError(403, "", "Private repository storage limit reached")
        entries = [json.loads(line) for line in body.splitlines()]
        self.messages += [entry["value"]["summary"] for entry in entries if entry["key"] == "header"]
        files = {
            entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
            for entry in entries
            if entry["key"] == "file"
        }
        deleted = {entry["value"]["path"] for entry in entries if entry["key"] == "deletedFile"}
        repo = self.repos["models", parts["repo"]]
        kept = repo.commits[repo.refs[parts["branch"]]]
        if missing := deleted - set(kept):
            raise RefusalError(404, "EntryNotFound", f"There is no {min(missing)} to delete")
        kept = {name: content.whole() for name, content in kept.items() if name not in deleted}
        oid = repo.commit({**kept, **files}, branch=parts["branch"])
        return json_reply({"success": True, "commitOid": oid, "commitUrl": f"{self._url(parts['repo'])}/commit/{oid}"})

    def _url(self, repo_id: str) -> str:
        return f"{self.hub.endpoint}/{repo_id}"


def serve_here(hub: LoopbackHub, patch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub use our Hub in this process. It reads the address at import."""
    patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", "hf_good")
