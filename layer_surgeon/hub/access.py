"""Check whether the Hub will accept an upload, before the work whose result is to be uploaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not re-exported

from layer_surgeon._text import first_line, without_secrets_in
from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.errors import ConfigError, LayerSurgeonError, SourceAccessError, SourceError

_NO_WRITE_ROLES = ("read", "no_access")


def check_access(repo_id: str) -> None:
    """Check that this account may write to a repo, or create it if it doesn't exist. Nothing is created.

    Whether a new repo can be created is only certain once it is created. Until then, this relies on what the Hub says
    about the account: its name, its organisations and the rights of the token.

    Args:
        repo_id: Such as `me/my-model`.

    Raises:
        ConfigError: The repo id is invalid.
        SourceAccessError: You are not logged in, or this account may not write to the repo.
        SourceError: The Hub can't be reached.
    """
    with upload_errors(repo_id):
        validate_repo_id(repo_id)
        api = HfApi(library_name="layer_surgeon")
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
    """Check the rights for a repo that doesn't exist yet, or that this account can't see."""
    roles = {org["name"].lower(): org.get("roleInOrg") for org in account.get("orgs") or []}
    me, owner_key = str(account["name"]), owner.lower()
    if owner_key != me.lower() and owner_key not in roles:
        namespaces = " or ".join(f"{namespace}/" for namespace in (me, *roles))
        raise SourceAccessError(
            f"You are logged in to the Hub as {me}, which may not create a repo of {owner}. Choose a repo id that "
            f"starts with {namespaces}, or log in with another account (`hf auth login`)."
        )
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") in _NO_WRITE_ROLES or roles.get(owner_key) in _NO_WRITE_ROLES or not _may_write(token, owner):
        raise SourceAccessError(
            f"The token that {me} is logged in with may not write to repos of {owner}. Create a token with write "
            "access on https://huggingface.co/settings/tokens, and log in with it (`hf auth login`)."
        )


def _may_write(token: Mapping[str, Any], owner: str) -> bool:
    """Whether a fine-grained token may write to any repo of the owner; True for other tokens."""
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
    """Translate upload errors into ours.

    Raises:
        ConfigError: The repo id is invalid.
        SourceAccessError: You are not logged in, or the account may not write to the repo.
        SourceError: The Hub can't be reached, or rejects the upload.
    """
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is not a repo id. Choose one such as me/my-graft.") from error
    except LocalTokenNotFoundError as error:
        raise SourceAccessError(
            f"You are not logged in to the Hub, so {repo_id} can't be written. Log in with `hf auth login`."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise SourceAccessError(
                f"The Hub doesn't let this account write to {repo_id} (status {status}). Log in with `hf auth login`, "
                "or pass a token with write access (--token). The part before the / must be your own name or that of "
                "your organisation."
            ) from error
        raise SourceError(f"The Hub rejected the upload to {repo_id}: {first_line(error)}") from error
    except LayerSurgeonError:
        raise
    except (RuntimeError, ValueError) as error:
        # huggingface_hub wraps the client's errors for large files in RuntimeError. Its ValueError has several lines.
        message = " ".join(str(error).split()).rstrip(".")
        reason = f"{message}: {first_line(error.__cause__)}" if error.__cause__ is not None else message
        raise SourceError(
            f"The upload to {repo_id} failed: {without_secrets_in(reason).rstrip('.')}. Try again."
        ) from error
    except (CLIENT_ERROR, ConnectionError, TimeoutError) as error:
        raise SourceError(
            f"The Hub can't be reached to upload {repo_id}: {error}. Nothing was committed; try again."
        ) from error
