"""The jinja chat template of a Hugging Face folder, rendered as transformers renders it.

A template is code that came with a model. It runs in jinja's immutable sandbox, which reaches no
file, no module and no attribute that begins with an underscore; releases of jinja2 before 3.1.6
have known ways out and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from omr_io.errors import ConfigError, TokenizerError

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_OLDEST = (3, 1, 6)


@dataclass(frozen=True, slots=True)
class JinjaTemplate:
    """A chat template and the named tokens that it may use (`bos_token`)."""

    source: str
    tokens: Mapping[str, str]

    @classmethod
    def of(cls, files: Mapping[str, str]) -> JinjaTemplate | None:
        """The template among the files of a folder, given as texts by name; None if it has none.

        chat_template.json (the processor's, as Qwen2.5-VL has it) goes before chat_template.jinja,
        and that before tokenizer_config.json.

        Raises:
            TokenizerError: a file is not what its name says.
        """
        settings = _json(files, "tokenizer_config.json")
        tokens = {**_json(files, "special_tokens_map.json"), **settings}
        named = {name: _content(tokens[name]) for name in _TOKENS if tokens.get(name)}
        source = _json(files, "chat_template.json").get("chat_template")
        source = source or files.get("chat_template.jinja") or settings.get("chat_template")
        if isinstance(source, list):  # several by name: [{"name": ..., "template": ...}]
            by_name = {str(entry["name"]): entry["template"] for entry in source}
            source = by_name.get("default")
        return None if not source else cls(str(source), named)

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises:
            TokenizerError: the template fails on it.
            ConfigError: jinja2 is missing or too old.
        """
        environment = _environment()
        try:
            return str(
                environment.from_string(self.source).render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=generation_prompt,
                    **self.tokens,
                )
            )
        except Exception as error:  # a template may raise anything
            raise TokenizerError(
                f"the chat template fails on a conversation: {error}",
                mend="Use the folder of an Instruct model",
            ) from error


def _environment() -> Any:
    """As transformers sets it up: blocks leave no line breaks and no blanks before them."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError("a chat template needs jinja2", mend="pip install jinja2") from error
    release = version("jinja2")
    if tuple(int(n) for n in release.split(".")[:3] if n.isdigit()) < _OLDEST:
        raise ConfigError(
            f"jinja2 {release} lets a chat template out of its sandbox",
            mend="pip install -U jinja2",
        )

    class Generation(Extension):
        """{% generation %}: transformers' mark around what is trained; its content stays."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja's escapes HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _json(files: Mapping[str, str], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        return dict(json.loads(files[name]))
    except (ValueError, TypeError) as error:
        raise TokenizerError(f"{name} is not a JSON object: {error}") from error


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
