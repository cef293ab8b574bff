"""Every command that README and docs print names options that exist, with values that they take."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import typing
from string import Template

import pytest
import tyro

from specgym.scripts.cli import load_command
from tests.support.commands import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KNOWN = ("specgym", "make", "pip")


def printed() -> list[str]:
    """Returns the command lines in the fenced blocks of all pages, with the shell's variables filled in."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            values: dict[str, str] = {}
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.fullmatch(r'([A-Z]+)="?(.*?)"?', line):
                    values[found[1]] = found[2]
                elif line.split(" ")[0] in KNOWN:
                    lines.append(Template(line).substitute(values))
    return lines


COMMANDS = printed()


def test_all_pages_are_read() -> None:
    assert len(COMMANDS) > 40
    assert {line.split()[0] for line in COMMANDS} == set(KNOWN)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("specgym ") and "--help" not in line])
def test_a_printed_command_has_these_options(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    options = typing.get_type_hints(load_command(name))["options"]
    assert tyro.cli(options, args=arguments) is not None


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_a_printed_target_of_make_exists(line: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    arguments = shlex.split(line, comments=True)
    done = subprocess.run([*arguments, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
