"""Requests to the Hub, sent again while what is wrong with them passes by itself."""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, parse_ratelimit_headers
from tqdm.auto import tqdm

from ddpm_hf.terminal import one_line

TRIES = 8
FIRST_WAIT, LONGEST_WAIT = 1.0, 600.0  # seconds; doubled each time, unless the Hub asks for another
SILENCE = 120.0  # seconds without a byte, after which a connection is given up

# Beside all of 5xx: a timeout, two conflicts with another commit that is under way, too many requests.
PASSING_STATUS = (408, 409, 412, 429)
PASSING_ERRORS = (
    *(httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError),
    json.JSONDecodeError,  # huggingface_hub reads the answer about a card before it looks at the status
    RuntimeError,  # of hf_xet, when an upload breaks off
)

_MEANINGS = {
    401: "the Hub does not accept the token",
    403: "the token may not do this",
    404: "the Hub does not know this address",
    413: "a file is too large for the Hub",
    429: "too many requests; try later",
}

Answer = TypeVar("Answer")


def persist(request: Callable[[], Answer]) -> Answer:
    """Send a request, and again after a growing pause, while the Hub is busy or the connection breaks.

    Args:
        request (callable): Sends it and returns the answer. It has to be harmless to repeat.

    Raises:
        Exception: The request's own, if it is final, or the last try failed too.
    """
    for attempt in range(1, TRIES + 1):
        try:
            get_session().timeout = SILENCE  # the client's own is for ever
            return request()
        except (HfHubHTTPError, *PASSING_ERRORS) as error:
            if attempt == TRIES or not _passes(error):
                raise
            seconds = min(_wish(error) or FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
            tqdm.write(f"The Hub: {one_line(error)}. Trying again in {seconds:.0f} s ({attempt} of {TRIES}).")
        time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def status_of(error: Exception) -> int | None:
    """The status that the Hub answered with, if it did."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def refusal(error: Exception) -> str:
    """What an error of a request to the Hub says, in one line that begins with what it means for the user."""
    status = status_of(error)
    meaning = _MEANINGS.get(status) or ("the Hub is out of order; try later" if status and status >= 500 else "")
    return f"{meaning} ({one_line(error)})" if meaning else one_line(error)


def _passes(error: Exception) -> bool:
    status = status_of(error)
    return status is None or status in PASSING_STATUS or status >= 500


def _wish(error: Exception) -> float | None:
    """The seconds that the Hub asks to wait for, if it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    wish, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    if re.fullmatch(r"\d+(\.\d+)?", wish):
        return float(wish)
    with suppress(ValueError):  # nothing, or no date
        return max(parsedate_to_datetime(wish).timestamp() - time.time(), 0)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
