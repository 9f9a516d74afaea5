"""Keep what a person wrote into a model card when the card is made again.

The text between the marks `<!-- ddpm_hf:begin NAME -->` and `<!-- ddpm_hf:end -->` is made again each time. A person
may have written all other text, so it stays.
"""

import re
from pathlib import Path

import yaml

from ddpm_hf.hub.card_metadata import to_yaml
from ddpm_hf.terminal import one_line

CARD = "README.md"

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BLOCK = re.compile(r"<!-- ddpm_hf:begin (\w+) -->.*?<!-- ddpm_hf:end -->", re.DOTALL)
_OF_DIFFUSERS = "This model card has been automatically generated."  # what `push_to_hub` of diffusers writes


def read_card(path: Path) -> str:
    """Read a card. Return an empty text if there is none.

    Raises:
        ValueError: If it is no text.
    """
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text of UTF-8 ({error}); save it as such, or move it away.") from error


def merge_cards(fresh: str, old: str) -> str:
    """Return an older card with the marked blocks and the metadata of a fresh one.

    A block whose marks were deleted stays deleted. Older tags stay, and so does older metadata that the fresh card does
    not set. The older licence stays if the fresh card knows none. Older scores go: they may be of other weights.

    Raises:
        ValueError: If the older metadata is no YAML of keys and values.
    """
    if not old.strip() or _OF_DIFFUSERS in old:
        return fresh
    ours, fresh_text = _split(fresh)
    theirs, text = _split(old)
    blocks = {match[1]: match[0] for match in _BLOCK.finditer(fresh_text)}
    text = _BLOCK.sub(lambda match: blocks.get(match[1], match[0]), text)
    if ours["license"] == "unknown":
        ours["license"] = theirs.get("license", "unknown")
    tags = theirs.get("tags") or []
    tags = [tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)]
    ours["tags"] = list(dict.fromkeys([*ours["tags"], *tags]))
    kept = {key: value for key, value in theirs.items() if key not in ours and key != "model-index"}
    return f"---\n{to_yaml(ours | kept)}\n---\n{text}"


def _split(card: str) -> tuple[dict, str]:
    """Return the metadata and the text of a card."""
    match = _FRONT_MATTER.match(card)
    if not match:
        return {}, card
    try:
        metadata = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata at the top of {CARD} is no YAML: {one_line(error)}.") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata at the top of {CARD} has to be keys and values.")
    return metadata, card[match.end() :]
