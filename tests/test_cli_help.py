"""Help, its examples, and completion by a real shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from omr_io.cli import app
from omr_io.cli.common import choices, epilog
from omr_io.cli.view import FILTER_NAMES
from omr_io.gallery import FILTERS
from tests.test_cli import omr_io  # noqa: F401  # a fixture

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = typer.main.get_command(app).commands


def examples(command: str) -> list[list[str]]:
    """The examples of a command's help, as arguments; what a shell would do with them cut off."""
    lines = [line.strip().replace("\\[", "[") for line in COMMANDS[command].epilog.splitlines()]
    found = []
    for line in lines:
        at = line.find("omr-io ")
        if at == 0 or line.startswith('eval "$(omr-io'):
            words = shlex.split(line[at:].split(")", 1)[0] if at else line, comments=True)
            end = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
            found.append(words[1:end])
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_examples_that_parse(command: str) -> None:
    found = examples(command)
    assert found, f"{command} --help has no examples"
    root = typer.main.get_command(app)
    for arguments in found:
        assert arguments[0] == command
        with root.make_context("omr-io", list(arguments)) as context:
            name, chosen, rest = root.resolve_command(context, arguments)
            chosen.make_context(name, rest, parent=context)  # raises for what does not parse


def test_an_example_that_does_not_parse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("omr-io info", "omr-io info a --nonsense", "omr-io view a -o b --limit x"):
        command = wrong.split()[1]
        monkeypatch.setattr(COMMANDS[command], "epilog", epilog(wrong))
        with pytest.raises(Exception, match=r"(?i)missing|no such option|valid integer"):
            test_every_command_has_examples_that_parse(command)


def test_help_shows_them(omr_io, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("COLUMNS", "140")
    code, out, _ = omr_io("info", "--help")
    assert code == 0
    assert "Examples:" in out
    assert "omr-io info train-shards/ test-shards/" in out
    assert "Exit codes: 0" in out
    assert "a\\[1]" in epilog("omr-io x a[1]")  # or rich would take it for a style


def test_choices() -> None:
    assert choices("refuse", "keep")("re") == ["refuse"]
    assert tuple(FILTERS) == FILTER_NAMES


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["completion", "bash"]])
def test_nothing_heavy_is_imported_to_help(arguments: list[str]) -> None:
    heavy = {"torch", "numpy", "pyarrow", "PIL", "transformers", "tokenizers", "simplejpeg"}
    code = (
        "import sys; from omr_io.cli import main\n"
        "try: main()\n"
        f"finally: print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the PATH with omr-io in it."""
    folder = tmp_path_factory.mktemp("bin")
    path = folder / "omr-io"
    code = "from omr_io.cli import main; main()"
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -c "{code}" "$@"\n'
    )
    path.chmod(0o755)
    return folder


ASK = """
eval "$(omr-io completion bash)"
while read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ "$line" == *" _" ]] && COMP_WORDS[-1]=""
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  COMPREPLY=()
  _omr_io_completion omr-io "${COMP_WORDS[COMP_CWORD]}" ""
  printf '%s|' "${COMPREPLY[@]}"
  echo
done
complete -p omr-io
"""


def test_bash_completes(program: Path) -> None:
    """By the protocol of bash: words in COMP_WORDS, answers in COMPREPLY. "_" is an empty word."""
    asked = {
        "omr-io vi": ["view"],
        "omr-io ver": ["verify"],
        "omr-io view --li": ["--limit"],
        "omr-io view --filter opt": ["options="],
        "omr-io completion _": ["bash", "zsh", "fish"],
        "omr-io completion z": ["zsh"],
        "omr-io info sha": [],  # a path: left to bash
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK],
        input="\n".join([*asked, "omr-io _", "omr-io convert --"]) + "\n",
        env={"PATH": f"{program}:/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    *answers, last = done.stdout.splitlines()
    words = [[word for word in line.split("|") if word] for line in answers]
    assert dict(zip(asked, words[: len(asked)], strict=True)) == asked
    assert set(words[-2]) == set(COMMANDS)
    assert {"--max-rejects", "--overwrite", "--json"} <= set(words[-1])
    assert "-o default" in last  # where there is no answer, bash completes files


@pytest.mark.parametrize(("shell", "words"), [("zsh", "compdef"), ("fish", "complete --command")])
def test_scripts_of_other_shells(omr_io, shell: str, words: str) -> None:  # noqa: F811
    code, out, err = omr_io("completion", shell)
    assert (code, err) == (0, "")
    assert words in out
    assert "_OMR_IO_COMPLETE=complete_" + shell in out


def test_a_shell_that_is_not_known(omr_io) -> None:  # noqa: F811
    code, _, err = omr_io("completion", "ksh")
    assert code == 2
    assert "bash" in err
