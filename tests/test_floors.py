"""The house stands: imports point down only, from the doors to the world that they open on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
FORBIDDEN = {
    "env": {"controllers", "agents", "scripts", "tests", "stable_baselines3"},
    "controllers": {"agents", "scripts", "tests", "stable_baselines3", "gymnasium"},
    "agents": {"scripts", "tests"},
    "scripts": {"tests"},
}


def imported(source: str) -> set[str]:
    """The top-level packages that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_a_floor_imports_from_those_below_it_only(floor: str) -> None:
    files = {path: imported(path.read_text(encoding="utf-8")) for path in (HOUSE / floor).rglob("*.py")}
    wrong = {str(path.relative_to(HOUSE)): sorted(found & FORBIDDEN[floor]) for path, found in files.items()}
    assert not {path: names for path, names in wrong.items() if names}
    assert set().union(*files.values()) & ({floor} | set(FORBIDDEN)), "the test would be vacuous"


def test_an_import_is_found_wherever_it_hides() -> None:
    source = "import a.b\ndef later():\n    from c.d import e\nif True:\n    import f as g, h\n"
    assert imported(source) == {"a", "c", "f", "h"}
