"""The folder of a Space of any kind: whether it may be replaced, which files in it are ours, and its push."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from ddpm_hf.hub.card_merging import CARD
from ddpm_hf.hub.checks import check_files, check_push, find_token
from ddpm_hf.hub.links import SPACE, STATIC_SPACE, note_repository, repositories_of
from ddpm_hf.hub.retry import REQUEST_ERRORS, persist, refusal


def check_replaceable(space: Path, mark: str):
    """Raise a ValueError if there is a folder that this package did not write.

    Args:
        space (`Path`): The folder.
        mark (`str`): What the card of a Space of this kind says: "Written by" and the command.
    """
    if not space.exists() and not space.is_symlink():
        return
    if not space.is_dir() or any(path.is_symlink() for path in (space, *space.rglob("*"))):
        raise ValueError(
            f"{space} is no folder, or there are links in it; move it away, so that the Space can be written there."
        )
    card = space / CARD
    if any(space.iterdir()) and not (card.is_file() and mark in card.read_text(encoding="utf-8", errors="replace")):
        command = mark.split("`")[1]
        raise ValueError(
            f"{space} was not written by {command} (its {CARD} does not say so); move it away, so that the Space can "
            "be written there."
        )


def written_files(space: Path, patterns: Sequence[str]) -> list[Path]:
    """List the files of a Space that this package has written: those that fit the patterns."""
    return sorted({path for pattern in patterns for path in space.glob(pattern) if path.is_file()})


def remove_older(space: Path, patterns: Sequence[str]):
    """Delete the files of an older Space but its card, whose mark tells that a half-written Space may be replaced."""
    for file in written_files(space, patterns):
        if file != space / CARD:
            file.unlink()


def push_files(
    folder: str | Path, kind: str, sdk: str, patterns: Sequence[str], repo_id: str, token: str | None, private: bool
) -> str:
    """Upload the Space of a run in one commit. If nothing has changed there is no commit.

    Args:
        folder (`str` or `Path`): The run.
        kind (`str`): `SPACE` or `STATIC_SPACE`. The folder of the Space has this name.
        sdk (`str`): What runs the Space.
        patterns (`Sequence[str]`): Which of its files are pushed.
        repo_id, token, private: See [`push_run`].

    Returns:
        `str`: The address of the Space.

    Raises:
        ValueError: See [`check_push`], or if the repository holds the other demo of the run.
        OSError: If the Hub still refuses after all tries.
    """
    space, token = Path(folder, kind), find_token(token)
    check_files(space, [pattern for pattern in patterns if not pattern.endswith((".onnx", ".wasm"))], token)
    repo_id = check_push(repo_id, token, repo_type="space")
    other = STATIC_SPACE if kind == SPACE else SPACE
    if repositories_of(folder).get(other) == repo_id:
        raise ValueError(f"--hub_model_id {repo_id} holds the demo that {Path(folder, other)} is; name another Space.")
    api = HfApi(token=token)
    names = [path.relative_to(space).as_posix() for path in written_files(space, patterns)]
    try:
        persist(
            lambda: api.create_repo(repo_id, repo_type="space", space_sdk=sdk, private=private or None, exist_ok=True)
        )
        persist(
            lambda: api.create_commit(
                repo_id,
                [CommitOperationAdd(name, str(space / name)) for name in names],
                repo_type="space",
                commit_message="Upload the demo",
            )
        )
    except REQUEST_ERRORS as error:
        raise OSError(f"cannot push {space} to {repo_id}: {refusal(error)}") from error
    if not private:
        note_repository(folder, kind, repo_id)
    return f"{api.endpoint}/spaces/{repo_id}"
