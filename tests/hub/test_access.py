"""Whether an account may write to a repo is checked before the work that is to be uploaded."""

import huggingface_hub.constants
import pytest

from layer_surgeon.errors import ConfigError, GraftError, SourceAccessError, SourceError
from layer_surgeon.hub.access import check_access, upload_errors
from tests.support.hub_uploads import serve_here


def fine(owner, *permissions):
    scopes = [{"entity": {"type": "user", "name": owner}, "permissions": list(permissions)}]
    return {"auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": scopes}}}}


@pytest.mark.parametrize(
    ("account", "repo_id", "refusal"),
    [
        ({}, "me/new", None),
        ({}, "new", None),
        ({"orgs": [{"name": "Lab", "roleInOrg": "write"}]}, "lab/new", None),
        ({"orgs": [{"name": "lab", "roleInOrg": "read"}]}, "lab/new", "may not write to repos of lab"),
        ({"auth": {"accessToken": {"role": "read"}}}, "me/new", "may not write to repos of me"),
        (fine("me", "repo.write"), "me/new", None),
        (fine("me", "repo.content.read"), "me/new", "may not write"),
        (fine("lab", "repo.write"), "me/new", "may not write"),
        (None, "me/new", "status 401"),
        ({}, "you/there", None),
    ],
)
def test_who_may_write(hub, monkeypatch, account, repo_id, refusal):
    serve_here(hub, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_asked")
    if account is not None:
        monkeypatch.setitem(
            hub.router.accounts, "hf_asked", {"name": "me", "auth": {"accessToken": {"role": "write"}}, **account}
        )
    if repo_id == "you/there":
        hub.add_repo(repo_id, {"README.md": ""})
        refusal = "doesn't let this account write to you/there"
    if refusal is None:
        check_access(repo_id)
    else:
        with pytest.raises(SourceAccessError, match=refusal):
            check_access(repo_id)


def test_not_logged_in_and_hub_unreachable(hub, monkeypatch, tmp_path):
    serve_here(hub, monkeypatch)
    with pytest.raises(ConfigError, match="not a repo id"):
        check_access("a/b/c")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="can't be reached"):
        check_access("me/new")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SourceAccessError, match="You are not logged in"):
        check_access("me/new")


def test_errors_that_huggingface_hub_wraps():
    with (
        pytest.raises(SourceError, match=r"to me/new failed: Error with 'm': reset\. Try again"),
        upload_errors("me/new"),
    ):
        raise RuntimeError("Error with 'm'.") from OSError("reset")
    with pytest.raises(SourceError, match=r"to me/new failed: LFS errors: full\. Try again"), upload_errors("me/new"):
        raise ValueError("LFS errors:\nfull")
    with pytest.raises(GraftError, match="a link"), upload_errors("me/new"):
        raise GraftError("a link")
