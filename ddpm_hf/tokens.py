"""Tokens of the Hub: they are hidden in what is printed or recorded, and refused where they would be published."""

import re

# A token in a line of text; the flag that a token follows, mistyped or not; a name and password in an address.
_SECRETS = (
    (re.compile(r"(?<![A-Za-z0-9])(hf|api_org)_[\w.~+-]*\w"), r"\1_***"),
    (re.compile(r"(?i)(--?hub[_-]?to?ke?n?\w*(?:=|\s+)|\bbearer\s+)(?!(?:hf|api_org)_\*\*\*)\S+"), r"\1***"),
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "***"),
)
# In files, a name such as `hf_digits` is no token.
_LONG = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_(?:oauth_)?[A-Za-z0-9]{30,}")


def hide_tokens(text: str, *known: str | None) -> str:
    """A text to be printed or recorded, without what looks like a token, and without those that are known."""
    for token in filter(None, known):
        text = text.replace(token, "hf_***")
    for pattern, hidden in _SECRETS:
        text = pattern.sub(hidden, text)
    return text


def holds_token(text: str, *known: str | None) -> bool:
    """Whether a text that is to be published holds a token: a known one, or one of the Hub's form."""
    return bool(_LONG.search(text)) or any(token in text for token in known if token)


def refuse_token(flag: str, value: str, *known: str | None):
    """Check the name of a repository, which is public.

    Raises:
        ValueError: If a part of it is a token. The message does not repeat it.
    """
    if holds_token(value, *known) or any(part.startswith(("hf_", "api_org_")) for part in value.split("/")):
        raise ValueError(
            f"{flag} {hide_tokens(value, *known)}: expected the name of a repository, which everybody can read, and "
            "this looks like a token; pass a token by HF_TOKEN or --hub_token, and name the repository otherwise."
        )
