"""Google Cloud Storage: where credentials and endpoint come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import GCSStore

_CREDENTIALS = (
    "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BEARER_TOKEN", "GOOGLE_SKIP_SIGNATURE",
)  # fmt: skip


def make_store(bucket: str, client_options: Mapping[str, Any]) -> GCSStore:
    """A store with what the environment says now.

    GOOGLE_* variables come first, then the file of `gcloud auth application-default login`; without
    either the requests are anonymous. STORAGE_EMULATOR_HOST names an emulator.
    """
    from obstore.store import GCSStore

    config: dict[str, Any] = {}
    options = dict(client_options)
    if not any(os.environ.get(name) for name in _CREDENTIALS) and not _default_credentials():
        config["skip_signature"] = True
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator:
        url = emulator if "://" in emulator else f"http://{emulator}"
        config["base_url"] = url.rstrip("/")
        options["allow_http"] = url.startswith("http://")  # the user's own word
    return GCSStore(
        bucket,
        config=config,  # type: ignore[arg-type]
        client_options=options,  # type: ignore[arg-type]
        retry_config={"max_retries": 0},  # tries are counted by the caller
    )


def _default_credentials() -> bool:
    """Whether gcloud keeps credentials for applications where obstore looks for them."""
    try:
        return (Path.home() / ".config/gcloud/application_default_credentials.json").is_file()
    except RuntimeError:  # no home
        return False
