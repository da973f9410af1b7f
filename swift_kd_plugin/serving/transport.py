"""One exchange with a teacher server: timeouts, retries with growing pauses, and errors that name no credential."""

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests

from swift_kd_plugin.errors import KDError

KEY_VARIABLE = "SWIFT_KD_TEACHER_API_KEY"
CONNECT_SECONDS = 10
REASON_LENGTH = 300
BUSY = 429


@dataclass(frozen=True)
class Limits:
    """How patient the client is and how much it asks for at a time.

    Args:
        timeout: seconds that a server may stay silent.
        attempts: of one request, the first included.
        pause: seconds before the second attempt; each further pause is twice as long.
        sequences: of one request at most.
        entries: of one answer at most, unless a single sequence has more; an entry takes about 70 bytes of JSON.
        in_flight: requests at a time.
    """

    timeout: float = 600.0
    attempts: int = 6
    pause: float = 1.0
    sequences: int = 32
    entries: int = 500_000
    in_flight: int = 4


class Refused(KDError):
    """The server answered 4xx: the same request will not do better. `reason` is what the server said."""

    def __init__(self, server: str, status: int, reason: str):
        super().__init__(f"The teacher server {server} refused a request with status {status}: {reason}.")
        self.status, self.reason = status, reason


class Unavailable(KDError):
    """No attempt got an answer. `status` is the last one's, or None where there was no answer at all."""

    def __init__(self, server: str, attempts: int, status: int | None, reason: str, flag: str):
        super().__init__(
            f"The teacher server {server} gave no answer in {attempts} attempts ({reason}); see that it runs and that "
            f"{flag} has its address."
        )
        self.status, self.reason = status, reason


class Endpoint:
    """A server's address.

    Args:
        url: http or https; a path in front of the routes is kept.
        key: sent as a bearer token, never shown.
        flag: where the user gave the address.

    Raises:
        KDError: the address is none.
    """

    def __init__(self, url: str, limits: Limits, key: str | None = None, flag: str = "--teacher_model_server"):
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise KDError(f"{flag}: {hide_credentials(url)!r} is no address like http://host:8000.")
        self.url = url.strip().rstrip("/")
        self.name = hide_credentials(self.url)
        self.limits, self.flag = limits, flag
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        """The decoded JSON answer; raises like `post`."""
        return self._exchange("GET", path, None, self.limits.attempts)

    def post(self, path: str, body: dict, attempts: int | None = None) -> Any:
        """The decoded JSON answer.

        Args:
            attempts: other than the limits say.

        Raises:
            Refused: status 4xx but 429.
            Unavailable: no connection, silence, 5xx or 429 at every attempt.
        """
        return self._exchange("POST", path, body, attempts or self.limits.attempts)

    def _exchange(self, method: str, path: str, body: dict | None, attempts: int) -> Any:
        status, reason = None, ""
        for attempt in range(attempts):
            if attempt:
                time.sleep(self.limits.pause * 2 ** (attempt - 1))
            try:
                response = self._send(method, path, body)
            except requests.RequestException as error:
                status, reason = None, _explain(error, self.limits.timeout)
                continue
            if response.status_code == requests.codes.ok:
                return self._decode(response)
            status, message = response.status_code, _said(response)
            if status != BUSY and status < 500:
                raise Refused(self.name, status, message)
            reason = f"status {status}: {message}"
        raise Unavailable(self.name, attempts, status, reason, self.flag)

    def _send(self, method: str, path: str, body: dict | None) -> requests.Response:
        timeout = (min(CONNECT_SECONDS, self.limits.timeout), self.limits.timeout)
        # A redirected POST would come back as a GET.
        return requests.request(
            method, self.url + path, json=body, headers=self.headers, timeout=timeout, allow_redirects=False
        )

    def _decode(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except requests.JSONDecodeError as error:
            raise KDError(f"The teacher server {self.name} answered something that is not JSON.") from error


def hide_credentials(url: str) -> str:
    """The address without user name, password and query."""
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _said(response: requests.Response) -> str:
    """The reason in an error's body, as vLLM ({"error": {"message"}}) and ms-swift ({"message"}) write it."""
    try:
        body = response.json()
    except requests.JSONDecodeError:
        body = response.text
    if isinstance(body, dict):
        inner = body.get("error")
        body = (inner.get("message") if isinstance(inner, dict) else inner) or body.get("message") or body.get("detail")
    return " ".join(str(body or response.reason).split())[:REASON_LENGTH].rstrip(".")


def _explain(error: requests.RequestException, timeout: float) -> str:
    # The exceptions' own texts hold the address with its credentials.
    if isinstance(error, requests.Timeout):
        return f"silent for {timeout:g} s"
    return "the connection was refused or broke off"
