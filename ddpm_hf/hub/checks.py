"""Find out whether a push can succeed, before anything is trained or sent."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ddpm_hf.forms import misfit
from ddpm_hf.hub.retry import REQUEST_ERRORS, persist, refusal, status_of
from ddpm_hf.terminal import one_line
from ddpm_hf.tokens import hide_tokens, holds_token, refuse_token
from ddpm_hf.weights import check_finite, read_state_dict


def find_token(token: str | None = None) -> str:
    """Return the token that was passed, or that of the environment or of `hf auth login`.

    Raises:
        ValueError: If there is none, or it holds characters that no token has, such as a line break.
    """
    token = (token or get_token() or "").strip()
    if not token:
        raise ValueError("no token for the Hub: set HF_TOKEN, log in with `hf auth login`, or pass --hub_token.")
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("--hub_token holds blanks, line breaks or letters beyond ASCII, which no token does.")
    return token


def check_push(repo_id: str, token: str | None = None, repo_type: str = "model") -> str:
    """Find out whether a push can succeed, so that it does not fail after the training.

    Args:
        repo_id (`str`): `user/name`, `organisation/name`, or a name of the user's own.
        token (`str`, *optional*): See [`find_token`].
        repo_type (`str`): `"model"` or `"space"`.

    Returns:
        `str`: The repository with its owner.

    Raises:
        ValueError: If the name is not valid; if the token is missing, unknown or may not write; if the owner is someone
            else; or if the repository exists and the token may not write to it.
        OSError: If the Hub cannot be asked.
    """
    token = find_token(token)
    check_name(repo_id, token)
    api = HfApi(token=token)
    try:
        me = persist(api.whoami)
        if problem := misfit(me, {"name": str}, name="the answer"):
            raise OSError(f"the Hub at {api.endpoint} cannot be asked whose the token is: {problem}.")
    except REQUEST_ERRORS as error:
        if status_of(error) in (401, 403):
            raise ValueError(
                f"--hub_token: the Hub does not accept this token, or it has expired (status {status_of(error)})."
            ) from error
        raise OSError(f"the Hub cannot be asked about {repo_id}: {refusal(error)}") from error
    owner, _, _ = repo_id.rpartition("/")
    repo_id = repo_id if owner else f"{me['name']}/{repo_id}"
    _check_owner(me, repo_id)
    try:
        persist(lambda: api.auth_check(repo_id, repo_type=repo_type, write=True))
    except REQUEST_ERRORS as error:
        if isinstance(error, RepositoryNotFoundError) and status_of(error) != 403:
            return repo_id  # it will be made
        if status_of(error) == 401:
            raise ValueError(f"--hub_token: the Hub does not accept this token for {repo_id}.") from error
        if status_of(error) == 403:
            raise ValueError(
                f"--hub_model_id {repo_id} is taken by a repository that {me['name']} may not write to; choose another "
                "name."
            ) from error
        raise OSError(f"the Hub cannot be asked about {repo_id}: {refusal(error)}") from error
    return repo_id


def check_name(repo_id: str, token: str | None = None):
    """Find out whether this can be the name of a repository, without asking the Hub.

    Raises:
        ValueError: If it cannot, or it holds a token.
    """
    refuse_token("--hub_model_id", repo_id, token)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id {repo_id}: {one_line(error)}.") from error


def _check_owner(me: dict, repo_id: str):
    """Raise a ValueError unless a user may write to a repository.

    Args:
        me (`dict`): The user and the token, as the Hub describes them.
        repo_id (`str`): The repository, with its owner.
    """
    user, owner = me["name"], repo_id.split("/")[0]
    roles = {user: "write", **{group["name"]: group.get("roleInOrg") for group in me.get("orgs", [])}}
    if owner not in roles:
        may = ", ".join(name for name, role in roles.items() if role != "read")
        raise ValueError(f"--hub_model_id {repo_id}: {user} may not write to repositories of {owner}, only of {may}.")
    if roles[owner] == "read":
        raise ValueError(
            f"--hub_model_id {repo_id}: {user} may only read in {owner}; its administrators can change that."
        )
    token = me.get("auth", {}).get("accessToken", {})
    scopes = token.get("fineGrained", {}).get("scoped", [])
    writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not writable & {owner, repo_id}):
        raise ValueError(
            f"--hub_token: this token of {user} may not write to {repo_id}; make one that may, at "
            f"{HfApi().endpoint}/settings/tokens."
        )


def check_weights(folder: Path):
    """Find out whether the weights of a pipeline can be shared.

    Raises:
        ValueError: If they are missing, broken or not finite; the message names the file.
    """
    paths = sorted(folder.glob("unet/*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}/unet holds no weights, *.safetensors; save the pipeline with save_pretrained.")
    for path in paths:
        check_finite(read_state_dict(path), str(path))


def check_files(folder: Path, patterns: Sequence[str], token: str | None = None):
    """Check the files of a folder that are to be published.

    Raises:
        ValueError: If one is a link to a place outside of the folder, or holds a token.
    """
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link to outside of {folder}; replace it by the file itself, or remove it.")
        if path.suffix != ".safetensors":
            check_secrets(str(path), path.read_text(encoding="utf-8", errors="replace"), token)


def check_secrets(what: str, text: str, token: str | None):
    """Check a text that is to be published.

    Raises:
        ValueError: If it holds a token.
    """
    if holds_token(text, token):
        raise ValueError(f"{hide_tokens(what, token)} contains a token, which everybody could read. Remove it.")
