"""Tokens of the Hub: hide them in what is printed or recorded, and refuse them in what is published."""

import re

_TOKEN = r"(hf|api_org)_[\w.~+-]*\w"
_FLAG = r"--?(?:hub[_-]?)?to?k\w*"  # mistyped or not
_SECRETS = (
    (re.compile(rf"(?<![A-Za-z0-9_]){_TOKEN}"), r"\1_***"),
    (re.compile(rf"(?i)({_FLAG}=|\bbearer\s+)(?!(?:hf|api_org)_\*)\S+"), r"\1***"),
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "***"),  # a name and password in an address
)
# In files, a name such as `hf_digits` is no token.
_LONG = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_(?:oauth_)?[A-Za-z0-9]{30,}")


def hide_tokens(text: str, *known: str | None) -> str:
    """Replace known tokens, and everything that looks like a token, in a text to be printed or recorded."""
    for token in filter(None, known):
        text = text.replace(token, "hf_***")
    for pattern, hidden in _SECRETS:
        text = pattern.sub(hidden, text)
    return text


def hide_arguments(message: str) -> str:
    """Hide tokens in a message of argparse, also what follows the flag of the token."""
    return re.sub(rf"(?i)({_FLAG}) (?!(?:hf|api_org)_\*)[^\s-]\S*", r"\1 ***", hide_tokens(message))


def holds_token(text: str, *known: str | None) -> bool:
    """Return whether a text to be published holds a known token, or one of the Hub's form."""
    return bool(_LONG.search(text)) or any(token in text for token in known if token)


def refuse_token(flag: str, value: str, *known: str | None):
    """Refuse a name of a repository that holds a token, since the name is public.

    Raises:
        ValueError: If a part of the name is a token. The message does not repeat it.
    """
    if holds_token(value, *known) or any(part.startswith(("hf_", "api_org_")) for part in value.split("/")):
        raise ValueError(
            f"{flag} {hide_tokens(value, *known)}: this looks like a token, and everybody can read the name of a "
            "repository. Pass a token as HF_TOKEN or --hub_token, and choose another name."
        )
