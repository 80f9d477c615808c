"""Whether the Hub will take an upload: asked before the work whose result shall go there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not re-exported

from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.errors import ConfigError, SourceAccessError, SourceError
from layer_surgeon.graft.translate import first_line

_READERS = ("read", "no_access")


def check_access(repo_id: str, *, token: str | bool | None = None) -> None:
    """See that this account may write to a repo, or make it where there is none. Nothing is made.

    Of a new repo the Hub only says for certain when it is made; until then this goes by what it says of the account:
    whose it is, in which organisations, and what the token may do.

    Args:
        repo_id: Such as `me/my-model`.
        token: Hub token; default: the one of `hf auth login`.

    Raises:
        ConfigError: The repo id is none.
        SourceAccessError: Nobody is logged in, or this account may not write there.
        SourceError: The Hub can't be reached.
    """
    with upload_errors(repo_id):
        validate_repo_id(repo_id)
        api = HfApi(token=token, library_name="layer_surgeon")
        account = api.whoami()
        owner, _, name = repo_id.rpartition("/")
        owner = owner or account["name"]
        try:
            api.auth_check(f"{owner}/{name}", write=True)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 404:
                raise
            _check_new(owner, account)


def _check_new(owner: str, account: Mapping[str, Any]) -> None:
    """Of a repo that is not there yet, or that this account doesn't see."""
    roles = {org["name"].lower(): org.get("roleInOrg") for org in account.get("orgs") or []}
    me, wanted = str(account["name"]), owner.lower()
    if wanted != me.lower() and wanted not in roles:
        others = f", and of {', '.join(roles)}" if roles else ""
        raise SourceAccessError(
            f"The Hub knows this account as {me}, which may not make a repo of {owner}. Choose a name of {me}/"
            f"{others}, or log in with another account (`hf auth login`)."
        )
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") in _READERS or roles.get(wanted) in _READERS or not _may_write(token, owner):
        raise SourceAccessError(
            f"The token that {me} is logged in with may not write to repos of {owner}. Make one that may on "
            "https://huggingface.co/settings/tokens, and log in with it (`hf auth login`)."
        )


def _may_write(token: Mapping[str, Any], owner: str) -> bool:
    """Of a fine-grained token: whether it may write to anything of the owner's; of any other: yes."""
    if token.get("role") != "fineGrained":
        return True
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    return any(
        permission.startswith("repo") and "write" in permission
        for scope in scopes
        if str((scope.get("entity") or {}).get("name", "")).lower() == owner.lower()
        for permission in scope.get("permissions") or []
    )


@contextmanager
def upload_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of uploading into ours.

    Raises:
        ConfigError: The repo id is none.
        SourceAccessError: The account may not write there.
        SourceError: The Hub can't be reached, or doesn't accept the upload.
    """
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no repo id. Choose one such as me/my-graft.") from error
    except LocalTokenNotFoundError as error:
        raise SourceAccessError(
            f"Nobody is logged in to the Hub, so {repo_id} can't be written. Log in with `hf auth login`."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise SourceAccessError(
                f"The Hub doesn't let this account write to {repo_id} (status {status}). Log in with `hf auth login`, "
                "or pass --token with a token that may write; the part before the / must be yours or your "
                "organisation's."
            ) from error
        raise SourceError(f"The Hub doesn't accept the upload to {repo_id}: {first_line(error)}") from error
    except (CLIENT_ERROR, ConnectionError, TimeoutError) as error:
        raise SourceError(
            f"The Hub can't be reached to upload {repo_id}: {error}. Nothing was committed; try again."
        ) from error
