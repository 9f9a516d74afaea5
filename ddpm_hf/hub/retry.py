"""Repeat requests to the Hub while an error may pass by itself."""

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
FIRST_WAIT, LONGEST_WAIT = 1.0, 600.0  # seconds; the wait doubles each time, unless the Hub names one
SILENCE = 120.0  # seconds without a byte until a connection is given up

PASSING_STATUS = (408, 409, 412, 429)  # a timeout, two conflicts with another commit, too many requests; also all 5xx
REQUEST_ERRORS = (
    *(HfHubHTTPError, httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError),
    json.JSONDecodeError,  # huggingface_hub parses the check of a card before it looks at the status
    RuntimeError,  # hf_xet raises it when an upload breaks off
)

_MEANINGS: dict[int | None, str] = {
    401: "the Hub does not accept the token",
    403: "the token may not do this",
    404: "the Hub does not know this address",
    413: "a file is too large for the Hub",
    429: "too many requests; try later",
}

Answer = TypeVar("Answer")


def persist(request: Callable[[], Answer]) -> Answer:
    """Send a request, and repeat it after growing pauses while the Hub is busy or the connection breaks.

    Args:
        request (callable): Sends the request and returns the answer. Repeating it must do no harm.

    Raises:
        Exception: The request's own error, if it is final or the last try failed too.
    """
    attempt = 1
    while True:
        try:
            get_session().timeout = SILENCE  # by default, the client waits for ever
            return request()
        except REQUEST_ERRORS as error:
            if attempt == TRIES or not _passes(error):
                raise
            seconds = min(_requested_wait(error) or FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
            tqdm.write(f"The Hub: {one_line(error)}. Trying again in {seconds:.0f} s ({attempt} of {TRIES}).")
        time.sleep(seconds)
        attempt += 1


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the Hub's answer, or None if there was no answer."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def refusal(error: Exception) -> str:
    """Say in one line what an error of a request means for the user, and what it says itself."""
    status = status_of(error)
    meaning = "the Hub is out of order; try later" if status and status >= 500 else _MEANINGS.get(status)
    return f"{meaning} ({one_line(error)})" if meaning else one_line(error)


def _passes(error: Exception) -> bool:
    status = status_of(error)
    return status is None or status in PASSING_STATUS or status >= 500


def _requested_wait(error: Exception) -> float | None:
    """Return the seconds that the Hub asks to wait for, if it does: `Retry-After`, or the end of a rate limit."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    retry_after, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    if re.fullmatch(r"\d+(\.\d+)?", retry_after):
        return float(retry_after)
    with suppress(ValueError):  # the header is missing, or no date
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
