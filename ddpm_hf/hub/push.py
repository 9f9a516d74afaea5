"""Push a run to the Hub: one commit of the pipeline and its card, repeated while an error may pass by itself."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ddpm_hf.files import replace_text
from ddpm_hf.hub.card import pictures_in, render_card
from ddpm_hf.hub.card_inputs import read_options
from ddpm_hf.hub.card_merging import CARD, merge_cards, read_card
from ddpm_hf.hub.checks import check_files, check_push, check_secrets, check_weights, find_token
from ddpm_hf.hub.links import MODEL, note_repository, repositories_of
from ddpm_hf.hub.retry import REQUEST_ERRORS, persist, refusal
from ddpm_hf.run_files import INDEX

# These files of a run are pushed, and the pictures that the card shows; nothing else.
PUSHED = (
    *(CARD, INDEX, "pipeline_ddpm_custom.py"),
    *("unet/*.json", "unet/*.py", "unet/*.safetensors"),
    *("scheduler/*.json", "scheduler/*.py"),
)
CARD_AS_PUSHED = ".card-as-pushed.md"  # comparing with it tells edits in the folder from edits on the Hub
CARD_SET_ASIDE = "README.local.md"


def push_run(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool = False,
    commit_message: str = "Upload the trained pipeline",
) -> str:
    """Upload a run's pipeline, its card and the pictures of the card in one commit.

    Edits of the card are kept, in the folder and on the Hub. If nothing has changed there is no commit. Files that
    reached the Hub before a push broke off are not sent again.

    Args:
        folder (`str` or `Path`): The run, or any folder with a pipeline.
        repo_id (`str`): The repository, see [`check_push`]. It is made if it is missing.
        token (`str`, *optional*): A token that can write, see [`find_token`].
        private (`bool`): Whether a repository that is made becomes private.
        commit_message (`str`): Title of the commit.

    Returns:
        `str`: The address of the repository.

    Raises:
        ValueError: If the folder holds no pipeline that can be shared, or see [`check_push`].
        OSError: If the Hub still refuses after all tries.
    """
    folder = Path(folder)
    render_card(folder)  # raises an error if the pipeline is incomplete, before the Hub is asked
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
        # Each try makes its own list: an operation remembers what the Hub answered, and a commit whose answer was
        # lost may still have been made.
        persist(lambda: api.create_commit(repo_id, _files(folder, card), commit_message=commit_message))
    except REQUEST_ERRORS as error:
        raise OSError(f"cannot push {folder} to {repo_id}: {refusal(error)}") from error
    replace_text(folder / CARD_AS_PUSHED, card)
    note_repository(folder, MODEL, repo_id)
    return f"{api.endpoint}/{repo_id}"


def default_repo_id(folder: str | Path, kind: str = MODEL) -> str:
    """Return where to push a folder, or its demo, if nobody says it.

    For a demo, that is where it was pushed before. Else it is the `hub_model_id` of the run, where the folder was
    pushed before, or its name.
    """
    folder = Path(folder).resolve()
    noted, of_run = repositories_of(folder), read_options(folder).get("hub_model_id")
    return (kind != MODEL and noted.get(kind)) or of_run or noted.get(MODEL) or folder.name


def _files(folder: Path, card: str) -> list[CommitOperationAdd]:
    found = sorted(path.relative_to(folder).as_posix() for pattern in PUSHED for path in folder.glob(pattern))
    return [
        CommitOperationAdd(name, str(folder / name)) for name in dict.fromkeys([*found, *pictures_in(card, folder)])
    ]


def _card_on_hub(repo_id: str, token: str) -> str:
    """Read the card on the Hub, or return an empty text. The cache is not asked, since it may hold an older card."""
    try:
        response = get_session().get(hf_hub_url(repo_id, CARD), headers=build_hf_headers(token=token))
        hf_raise_for_status(response)
    except EntryNotFoundError:
        return ""
    return response.content.decode()


def _card_to_push(folder: Path, repo_id: str, remote: str) -> str:
    """Return the card with the edits that were made since the last push, in the folder or on the Hub.

    If both have edits, the card of the Hub wins, and that of the folder is set aside for a person to merge.
    """
    fresh = render_card(folder, repo_id)
    cards = (read_card(folder / CARD), read_card(folder / CARD_AS_PUSHED), remote)
    here, last, remote = (merge_cards(fresh, card) for card in cards)
    if remote in (fresh, last, here):
        return here
    if here != last:
        replace_text(folder / CARD_SET_ASIDE, here)
        print(f"{CARD} was edited here and on the Hub: the Hub's is kept, and this one is now {CARD_SET_ASIDE}.")
    return remote
