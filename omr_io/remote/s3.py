"""S3 and what speaks like it: where credentials, region and endpoint come from."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omr_io.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Store

_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT", "AWS_SKIP_SIGNATURE",
)  # fmt: skip
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def make_store(bucket: str, client_options: Mapping[str, Any]) -> S3Store:
    """A store with what the environment and the shared credentials file say now.

    AWS_* variables come first, then the profile AWS_PROFILE ("default") of
    AWS_SHARED_CREDENTIALS_FILE (~/.aws/credentials); without either the requests are anonymous.

    Raises:
        ConfigError: the shared credentials file cannot be read, or the endpoint is no URL.
    """
    from obstore.store import S3Store

    config: dict[str, Any] = {}
    if not any(os.environ.get(name) for name in _CREDENTIALS):
        config = _shared_credentials() or {"skip_signature": True}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT")
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        config["region"] = "us-east-1"
    options = dict(client_options)
    if endpoint:
        if re.match(r"https?://[^/]", endpoint) is None:  # obstore would panic at the first request
            raise ConfigError(
                "the endpoint of s3:// in the environment does not begin with http:// or https://",
                mend="Set AWS_ENDPOINT_URL to http://HOST:PORT or https://HOST:PORT",
            )
        config["endpoint"] = endpoint
        options["allow_http"] = endpoint.startswith("http://")  # the user's own word
    return S3Store(
        bucket,
        config=config,  # type: ignore[arg-type]
        client_options=options,  # type: ignore[arg-type]
        retry_config={"max_retries": 0},  # tries are counted by the caller
    )


def _shared_credentials() -> dict[str, str]:
    """The keys of the profile in the file that AWS's own tools read; none if there are none."""
    given = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    try:
        path = Path(given) if given else Path.home() / ".aws" / "credentials"
    except RuntimeError:  # no home
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    parser = configparser.RawConfigParser()
    broken = False
    try:
        parser.read_string(path.read_text())
        found = {key: parser.get(profile, key) for key in _KEYS if parser.has_option(profile, key)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, configparser.Error):
        broken = True  # its text may quote secrets
    if broken:
        raise ConfigError(
            f"the credentials file {path} cannot be read",
            mend="Mend it, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return found if "aws_access_key_id" in found else {}
