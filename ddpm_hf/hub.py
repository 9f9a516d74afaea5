"""Sharing a run on the Hub: one commit of the pipeline and its card, through every error that passes by itself."""

import re
import shlex
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id
from safetensors import SafetensorError, safe_open

from ddpm_hf.config import TrainingConfig
from ddpm_hf.files import misfit, replace_text
from ddpm_hf.model_card import CARD, merge_cards, pictures_in, read_card, read_options, render_card, write_card
from ddpm_hf.retry import PASSING_ERRORS, persist, refusal, status_of
from ddpm_hf.run_files import INDEX
from ddpm_hf.tokens import hide_tokens, holds_token, one_line, refuse_token

# What is pushed of a run, beside the pictures that the card shows; nothing else.
PUSHED = (
    *(CARD, INDEX, "pipeline_ddpm_custom.py"),
    *("unet/*.json", "unet/*.py", "unet/*.safetensors"),
    *("scheduler/*.json", "scheduler/*.py"),
)
CARD_AS_PUSHED = ".card-as-pushed.md"  # tells what was written by hand here from what was on the Hub
CARD_SET_ASIDE = "README.local.md"


# ---- Before training ------------------------------------------------------------------------------------------------


def find_token(token: str | None = None) -> str:
    """The token that was passed, or the one of the environment or of `hf auth login`.

    Raises:
        ValueError: If there is none, or it holds what no token does, such as a line break.
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
        ValueError: If the name is none, the token is missing, unknown or may not write, the owner is someone else, or
            the name is taken by a repository that the token may not write to.
        OSError: If the Hub cannot be asked.
    """
    token = find_token(token)
    check_name(repo_id, token)
    api = HfApi(token=token)
    try:
        me = persist(api.whoami)
        if problem := misfit(me, {"name": str}, name="the answer"):
            raise OSError(f"the Hub at {api.endpoint} cannot be asked whose the token is: {problem}.")
    except (HfHubHTTPError, *PASSING_ERRORS) as error:
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
    except (HfHubHTTPError, *PASSING_ERRORS) as error:
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
    """Find out whether it can be the name of a repository, without asking the Hub.

    Raises:
        ValueError: If it is none, or holds a token.
    """
    refuse_token("--hub_model_id", repo_id, token)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id {repo_id}: {one_line(error)}.") from error


def _check_owner(me: dict, repo_id: str):
    """Raise a ValueError unless the user `me`, as the Hub describes it, may write to repositories of that owner."""
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


# ---- The push -------------------------------------------------------------------------------------------------------


def push_run(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool = False,
    commit_message: str = "Upload the trained pipeline",
) -> str:
    """Upload a run's pipeline, card and the pictures of the card in one commit; none if nothing has changed.

    What was written into the card by hand is kept, here and on the Hub. Files that reached the Hub before a push broke
    off are not sent again.

    Args:
        folder (`str` or `Path`): The run, or any folder with a pipeline.
        repo_id (`str`): See [`check_push`]; made if missing.
        token (`str`, *optional*): See [`find_token`].
        private (`bool`): Whether to make it private, if it is made.
        commit_message (`str`): Title of the commit.

    Returns:
        `str`: The address of the repository.

    Raises:
        ValueError: If the folder holds no pipeline, or see [`check_push`].
        OSError: If the Hub does not take it, after all tries.
    """
    folder = Path(folder)
    render_card(folder)  # says what is missing, before the Hub is asked
    check_weights(folder)
    token = find_token(token)
    check_files(folder, PUSHED, token)
    check_secrets(f"the message {commit_message!r}", commit_message, token)
    repo_id = check_push(repo_id, token)
    api = HfApi(token=token)
    try:
        persist(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
        card = _card_to_push(folder, repo_id, persist(lambda: _card_on_hub(repo_id, token)))
        check_secrets(f"{folder / CARD}", card, token)
        replace_text(folder / CARD, card)
        # New for every try: they remember what the Hub told them, and a commit may have come through unanswered.
        persist(lambda: api.create_commit(repo_id, _files(folder, card), commit_message=commit_message))
    except (HfHubHTTPError, *PASSING_ERRORS) as error:
        raise OSError(f"cannot push {folder} to {repo_id}: {refusal(error)}") from error
    replace_text(folder / CARD_AS_PUSHED, card)
    return f"{api.endpoint}/{repo_id}"


def default_repo_id(folder: str | Path) -> str:
    """The `hub_model_id` of a run, or the name of its folder."""
    folder = Path(folder).resolve()
    return read_options(folder).get("hub_model_id") or folder.name


def check_weights(folder: Path):
    """Find out whether the weights of a pipeline can be shared: they are there, whole, and finite.

    Raises:
        ValueError: If not; the message names the file.
    """
    paths = sorted(folder.glob("unet/*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}/unet holds no weights, *.safetensors; save the pipeline with save_pretrained.")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as tensors:
                broken = [name for name in tensors.keys() if not tensors.get_tensor(name).isfinite().all()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is broken: {one_line(error)}; save the pipeline again.") from error
        if broken:
            raise ValueError(
                f"{path} holds numbers that are not finite, in {len(broken)} tensors such as {broken[0]}: the training "
                "diverged. Share the pipeline of an earlier checkpoint."
            )


def check_files(folder: Path, patterns: tuple[str, ...], token: str | None = None):
    """Check the files of a folder that are to be published.

    Raises:
        ValueError: If one is a link to elsewhere, or holds a token.
    """
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link to outside of {folder}; put the file itself there, or take it away.")
        if path.suffix != ".safetensors":
            check_secrets(str(path), path.read_text(encoding="utf-8", errors="replace"), token)


def check_secrets(what: str, text: str, token: str | None):
    """Check a text that is to be published.

    Raises:
        ValueError: If it holds a token.
    """
    if holds_token(text, token):
        raise ValueError(f"{hide_tokens(what, token)} contains a token, which everybody could read. Remove it.")


def _files(folder: Path, card: str) -> list[CommitOperationAdd]:
    found = sorted(path.relative_to(folder).as_posix() for pattern in PUSHED for path in folder.glob(pattern))
    return [
        CommitOperationAdd(name, str(folder / name)) for name in dict.fromkeys([*found, *pictures_in(card, folder)])
    ]


def _card_on_hub(repo_id: str, token: str) -> str:
    """The card as it is on the Hub, or nothing. Not from the cache, which may hold an older one."""
    try:
        response = get_session().get(hf_hub_url(repo_id, CARD), headers=build_hf_headers(token=token))
        hf_raise_for_status(response)
    except EntryNotFoundError:
        return ""
    return response.content.decode()


def _card_to_push(folder: Path, repo_id: str, remote: str) -> str:
    """The card with what was written into it by hand, here or on the Hub since the last push.

    If there is something new in both, the Hub's is pushed, and the one of the folder set aside, for a person to see to.
    """
    fresh = render_card(folder, repo_id)
    here, last = (read_card(path) for path in (folder / CARD, folder / CARD_AS_PUSHED))
    here, last, remote = (merge_cards(fresh, card) for card in (here, last, remote))
    if remote in (fresh, last, here):
        return here
    if here != last:
        replace_text(folder / CARD_SET_ASIDE, here)
        print(f"{CARD} was edited here and on the Hub: the Hub's is kept, and this one is now {CARD_SET_ASIDE}.")
    return remote


# ---- What train_ddpm.py does with it --------------------------------------------------------------------------------


def check_before_training(config: TrainingConfig):
    """If the run is to be pushed, find out whether it can be, and complete `hub_model_id`; see [`check_push`].

    The name is recorded in any case, so it is never a token.
    """
    if config.hub_model_id:
        check_name(config.hub_model_id, config.hub_token)
    if config.push_to_hub:
        repo_id = config.hub_model_id or Path(config.output_dir).resolve().name
        config.hub_model_id = check_push(repo_id, config.hub_token)


def share_run(config: TrainingConfig, finished: bool):
    """Write the card, and push the run if it is finished and to be pushed.

    The model is on the disk by now, so whatever goes wrong here is said in one line, with the command that repeats it.
    """
    folder, repo_id = config.output_dir, config.hub_model_id
    try:
        write_card(folder)
        if config.push_to_hub and finished:
            print(f"Pushed to {push_run(folder, repo_id, config.hub_token, config.hub_private_repo)}.")
    except Exception as error:
        later = f"ddpm-hf push {shlex.quote(str(folder))} --hub_model_id {repo_id or 'USER/NAME'}"
        private = " --hub_private_repo" * config.hub_private_repo
        reason = hide_tokens(one_line(error), config.hub_token)
        print(f"Not shared: {reason}. The model is in {folder}; share it later with: {later}{private}")
