"""Which judge is asked, how often and how long, and what it may cost."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from omr_io.errors import ConfigError, SourceError
from omr_io.remote.retries import RetryPolicy
from omr_io.remote.urls import redact

DEFAULT_SETTINGS: Mapping[str, object] = MappingProxyType({"temperature": 0, "max_tokens": 1024})
_PATH = "/chat/completions"
PATIENT = RetryPolicy(tries=6, first_wait=1.0, max_wait=60.0, timeout=120.0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible endpoint and the model that it is asked for.

    Attributes:
        url: its base, as http://127.0.0.1:8000/v1, or with /chat/completions at its end.
        model: as the endpoint calls it.
        key: sent as a bearer token, to this URL alone; "": none. It is never printed, and blanked
            out wherever the server repeats it.
        name: what stands for the endpoint in the cache and in results; "": the URL without its
            secrets. Give one where a URL changes from job to job and what answers does not.
        settings: fields of each request beside the model and messages; None leaves a field out.

    Raises:
        ConfigError: no URL of http(s), user and password in it, no model, a setting that is not
            to be set.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    name: str = ""
    settings: Mapping[str, object] = field(default_factory=lambda: DEFAULT_SETTINGS)

    def __post_init__(self) -> None:
        fault = ""
        try:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                fault = "is no URL of http(s)"
            elif "@" in parts.netloc:
                fault = "holds a user or password"
            elif parts.port == 0 or any(ord(char) <= 32 for char in self.url):
                fault = "is malformed"
        except ValueError:
            fault = "is malformed"
        if fault:
            raise ConfigError(
                f"the endpoint {redact(self.url)} {fault}",
                mend="Give its base, as http://127.0.0.1:8000/v1, and a key by --key-variable",
            )
        if not self.model:
            raise ConfigError("the judge's model has no name", mend="Name it: --judge-model NAME")
        own = sorted({"model", "messages", "stream", "n"} & set(self.settings))
        if own:
            raise ConfigError(f"the setting {own[0]} is not to be changed")
        if any(ord(char) <= 32 or ord(char) > 126 for char in self.key):
            raise ConfigError(
                "the key holds a blank, a control character or none of ASCII",
                mend="Set the environment variable again, without a line break at its end",
            )

    @property
    def post_url(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        whole = path if path.endswith(_PATH) else path + _PATH
        return parts._replace(path=whole, fragment="").geturl()

    @property
    def label(self) -> str:
        """What stands for it in the cache and in results."""
        return self.name or redact(self.url).rstrip("/")

    def request_settings(self) -> dict[str, object]:
        """The fields that are sent."""
        return {name: value for name, value in self.settings.items() if value is not None}

    def blank(self, text: str) -> str:
        """A text of the server's without the key, should it repeat it."""
        return text.replace(self.key, "***") if self.key else text


def key_of(variable: str | None) -> str:
    """The key that an environment variable holds; "" where none is named.

    Raises:
        ConfigError: there is no such variable, or it is empty.
    """
    if variable is None:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"the environment variable {variable} is not set",
            mend="Export the key under that name, or leave --key-variable out",
        )
    return value


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How questions are asked.

    Attributes:
        concurrency: requests under way at once, at most.
        policy: of trying again; `policy.timeout` is what one try may take, whole.
        deadline: seconds that one question may take, with all its tries and waits.
        give_up_after: questions in a row that fail for want of an answer, after which the
            endpoint counts as down and the run stops; what was answered is in the cache.
        keep_going: a refusal of one request (400, 413, 422) counts as a judge error of its
            question, where it otherwise stops the run.

    Raises:
        ConfigError: a number out of range.
    """

    concurrency: int = 8
    policy: RetryPolicy = PATIENT
    deadline: float = 600.0
    give_up_after: int = 40
    keep_going: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 1024:
            raise ConfigError(f"concurrency {self.concurrency} must lie between 1 and 1024")
        if not self.deadline > 0 or self.give_up_after < 1:
            raise ConfigError("deadline and give_up_after must be above 0")


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a million tokens, in the currency of whoever gives them; None: unknown."""

    prompt: float | None = None
    completion: float | None = None

    def __post_init__(self) -> None:
        for price in (self.prompt, self.completion):
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"a price of {price} cannot be")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What tokens cost; None unless both prices are known."""
        if self.prompt is None or self.completion is None:
            return None
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def refusal(status: int, detail: str, endpoint: Endpoint) -> SourceError:
    """The error of an answer that no further try would change."""
    mends = {
        401: "Set the key: export it as a variable and name that by --key-variable",
        403: "The key has no access to this model: use another, or ask for access",
        404: "Check --endpoint (its base ends in /v1 mostly) and --judge-model",
        400: "Change what it names: a setting by --set NAME=JSON (null leaves one out), the model; "
        "or, if it is about single items, let those count as judge errors by --keep-going",
    }
    what = f"the endpoint {redact(endpoint.url)} refuses the request ({status})"
    if 300 <= status < 400:
        what = f"the endpoint {redact(endpoint.url)} redirects ({status}), which is not followed"
        return SourceError(what, mend="Give the URL that it redirects to")
    if detail:
        what += f": {detail}"
    return SourceError(what, mend=mends.get(status, mends[400] if status in (413, 422) else None))
