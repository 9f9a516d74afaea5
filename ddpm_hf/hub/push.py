"""Sharing a run on the Hub: one commit of the pipeline and its card, through every error that passes by itself."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ddpm_hf.files import replace_text
from ddpm_hf.hub.card import pictures_in, render_card
from ddpm_hf.hub.card_inputs import read_options
from ddpm_hf.hub.card_merging import CARD, merge_cards, read_card
from ddpm_hf.hub.checks import check_files, check_push, check_secrets, check_weights, find_token
from ddpm_hf.hub.retry import PASSING_ERRORS, persist, refusal
from ddpm_hf.run_files import INDEX

# What is pushed of a run, beside the pictures that the card shows; nothing else.
PUSHED = (
    *(CARD, INDEX, "pipeline_ddpm_custom.py"),
    *("unet/*.json", "unet/*.py", "unet/*.safetensors"),
    *("scheduler/*.json", "scheduler/*.py"),
)
CARD_AS_PUSHED = ".card-as-pushed.md"  # tells what was written by hand here from what was on the Hub
CARD_SET_ASIDE = "README.local.md"


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
