"""The house style, as far as a machine can see it.

What a linter has no rule for: sizes of files, opening paragraphs, nothing left unfinished, nothing that
only makes sense on one machine, and no command that the documentation does not know.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from holdfast.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 600
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|NotImplemented" + r"Error)\b")
MACHINE = re.compile(
    r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|tm" + r"p)/\w"
    r"|--(?:extra-)?index" + r"-url|--find" + r"-links|--trusted" + r"-host"
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ""}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every text file that is, or is about to be, in the repository, by its path."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = [ROOT / name.decode() for name in names.stdout.split(b"\0") if name]
    found = {
        str(path.relative_to(ROOT)): path.read_text()
        for path in paths
        if path.is_file() and path.suffix in TEXT_SUFFIXES
    }
    assert "README.md" in found
    return found


@pytest.fixture(scope="module")
def modules(texts: dict[str, str]) -> dict[str, str]:
    """Those of them that are Python."""
    return {name: text for name, text in texts.items() if name.endswith(".py")}


def test_files_have_one_subject_of_readable_size(modules: dict[str, str]) -> None:
    lengths = {name: len(text.splitlines()) for name, text in modules.items()}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


def test_modules_open_with_what_they_are_for(modules: dict[str, str]) -> None:
    assert [
        name for name, text in modules.items() if text.strip() and not ast.get_docstring(ast.parse(text))
    ] == []


def test_nothing_is_left_unfinished(texts: dict[str, str]) -> None:
    assert {name: found for name, text in texts.items() if (found := UNFINISHED.findall(text))} == {}


def test_nothing_depends_on_one_machine(texts: dict[str, str]) -> None:
    assert {
        name: found for name, text in texts.items() if name != "LICENSE" and (found := MACHINE.findall(text))
    } == {}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-clients.txt"])
def test_every_dependency_is_pinned_to_a_version(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)


def test_readme_knows_every_command() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    readme = (ROOT / "README.md").read_text()
    assert commands
    for name, command in commands.items():
        assert f"holdfast {name}" in readme
        for option in command.params:
            for flag in option.opts:
                assert flag in readme, f"holdfast {name} {flag}"


def test_readme_and_makefile_agree() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    said = set(re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert said <= targets
    assert {"run", "check", "test", "test-fast", "sim", "bench"} <= targets
