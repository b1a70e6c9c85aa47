"""From files to a backend, with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from omr_io.errors import TokenizerError
from omr_io.tokenizer.backend import Backend, BackendName, SpecialText
from omr_io.tokenizer.compiled import cached, key_of
from omr_io.tokenizer.families import Family, tokenizer_config
from omr_io.tokenizer.files import read_bytes, read_text
from omr_io.tokenizer.native import NativeBackend
from omr_io.tokenizer.sources import folder_files, folder_json, rank_file_in, tiktoken_json

_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A backend, and by name the texts of the files that belong to its tokenizer.json."""

    backend: Backend
    companions: Mapping[str, str]


def make_backend(source: str, backend: BackendName, on_special_text: SpecialText) -> Backend:
    """A backend of the text of a tokenizer.json. Raises TokenizerError."""
    try:
        data = source.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"this is not a tokenizer.json: {error}") from error
    return _backend("json", data, lambda: source, backend, on_special_text)


def open_pretrained(path: Path, backend: BackendName, on_special_text: SpecialText) -> Opened:
    """Open what `Tokenizer.from_pretrained` takes. Raises TokenizerError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    data = read_bytes(file)
    if data is None or rank_file_in(file) is not None:
        return _open_without_json(path, file, backend, on_special_text)

    def text() -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"it is not UTF-8: {error}") from error

    with _Naming(file):
        made = _backend("json", data, text, backend, on_special_text)
    return Opened(made, _companions(file.parent))


def open_ranks(
    path: Path, family: Family, backend: BackendName, on_special_text: SpecialText
) -> Opened:
    """Open what `Tokenizer.from_tiktoken` takes. Raises TokenizerError."""
    data = read_bytes(path)
    if data is None:
        raise TokenizerError(f"{path} does not exist", mend="Give the rank file itself")
    with _Naming(path):
        made = _backend(
            f"tiktoken {family}",
            data,
            lambda: tiktoken_json(data, family),
            backend,
            on_special_text,
        )
    return Opened(made, {"tokenizer_config.json": tokenizer_config(family)})


def _open_without_json(
    path: Path, file: Path, backend: BackendName, on_special_text: SpecialText
) -> Opened:
    files = folder_files(path)
    if files is not None:
        with _Naming(path):
            made = _backend(
                "folder", b"\0".join(files), lambda: folder_json(*files), backend, on_special_text
            )
        return Opened(made, _companions(path))
    ranks = rank_file_in(path)
    if ranks is not None and ranks.is_file():
        raise TokenizerError(
            f"{ranks} is a rank file, which does not say what surrounds the vocabulary",
            mend='Tokenizer.from_tiktoken(FILE, "qwen2") reads it (or "qwen3", "llama3", ...)',
        )
    raise TokenizerError(
        f"{file} does not exist",
        mend="Give a local folder with tokenizer.json, or that file; `hf download NAME "
        "--local-dir FOLDER` fetches one from the Hugging Face hub, and transformers' "
        "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) converts older files",
    )


def _backend(
    kind: str,
    data: bytes,
    source: Callable[[], str],
    backend: BackendName,
    on_special_text: SpecialText,
) -> Backend:
    if backend == "native":
        return NativeBackend(cached(key_of(kind, data), len(data), source), on_special_text)
    from omr_io.tokenizer.hf_backend import HfBackend

    return HfBackend(source(), on_special_text)


def _companions(folder: Path) -> dict[str, str]:
    found = ((name, read_text(folder / name)) for name in _COMPANIONS)
    return {name: text for name, text in found if text is not None}


class _Naming:
    """Puts a file's name in front of a TokenizerError."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, TokenizerError):
            named = f"{self._file}: {error.what}"
            raise TokenizerError(named, mend=error.mend) from error.__cause__
