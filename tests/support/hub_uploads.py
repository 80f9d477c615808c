"""What the Hub answers to uploads: repos are made, and a commit carries its files along (none goes to storage)."""

import base64
import json
import re
from typing import Any

from tests.support.hub_faults import Reply, Request
from tests.support.hub_routes import RefusalError, Router, json_reply
from tests.support.loopback_hub import LoopbackHub

_CREATE = re.compile(r"/api/repos/create")
_YAML = re.compile(r"/api/validate-yaml")
_BRANCH = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)")
_PREUPLOAD = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>.+)")
_COMMIT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>.+)")


class UploadRouter(Router):
    """A router that takes commits, from the accounts whose tokens are `writers`."""

    def __init__(self, hub: LoopbackHub, writers: set[str]) -> None:
        super().__init__()
        self.cdn_url, self.hub, self.writers = hub.cdn_endpoint, hub, writers
        self.created: dict[str, dict[str, object]] = {}
        self.messages: list[str] = []

    def _routes(self) -> list[Any]:
        own = [
            (_CREATE, self._create),
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

    def _create(self, request: Request, _parts: dict[str, str], body: bytes) -> Reply:
        self._may(request)
        wanted = json.loads(body)
        repo_id = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if ("models", repo_id) in self.repos:
            reply = json_reply({"error": "You already created this model repo", "url": self._url(repo_id)}, 409)
        else:
            self.hub.add_repo(repo_id, {".gitattributes": ""})
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
        entries = [json.loads(line) for line in body.splitlines()]
        self.messages += [entry["value"]["summary"] for entry in entries if entry["key"] == "header"]
        files = {
            entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
            for entry in entries
            if entry["key"] == "file"
        }
        oid = self.repos["models", parts["repo"]].commit(files, branch=parts["branch"], keep=True)
        return json_reply({"success": True, "commitOid": oid, "commitUrl": f"{self._url(parts['repo'])}/commit/{oid}"})

    def _url(self, repo_id: str) -> str:
        return f"{self.hub.endpoint}/{repo_id}"
