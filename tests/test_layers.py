"""The arrows between the five rooms point down, and heavy libraries stay out of the light modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ext": set(),
    "reports": set(),
    "models": {"ext"},
    "tasks": {"models", "ext", "reports.record"},
    "harness": {"tasks", "models", "ext", "reports"},
}


def _own_imports(path: Path) -> set[str]:
    """Dotted names under mambalab that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            base = node.module or ""
            found |= {f"{base}.{a.name}" if base else a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mambalab"):
            found |= {f"{node.module}.{a.name}".removeprefix("mambalab.") for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("mambalab.") for a in node.names if a.name.startswith("mambalab")}
    return found


def _allowed(room: str, name: str) -> bool:
    return any(name == a or name.startswith(a + ".") for a in (*MAY_IMPORT[room], room))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_down(room):
    files = sorted((ROOT / room).glob("*.py"))
    wrong = [f"{f.name}: {n}" for f in files for n in _own_imports(f) if not _allowed(room, n)]
    assert not wrong


def test_the_arrow_check_sees_an_upward_import(tmp_path):
    path = tmp_path / "scan.py"
    path.write_text("def f():\n    from ..harness import cli\n")
    assert not all(_allowed("ext", name) for name in _own_imports(path))


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mambalab.harness.cli", {"torch", "pandas", "lm_eval", "transformers", "datasets", "numba", "matplotlib"}),
        ("mambalab.models.registry", {"torch"}),
        ("mambalab.tasks", {"torch"}),
        ("mambalab.reports.record", {"torch", "pandas"}),
        ("mambalab.reports.figures", {"torch", "pandas", "matplotlib"}),
        ("mambalab.harness.doctor", {"torch", "pandas", "lm_eval"}),
    ],
)
def test_light_modules_import_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom mambalab.harness.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', *sorted(set(sys.modules) & {'torch', 'pandas', 'lm_eval', 'transformers', 'datasets'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
    assert "eval" in done.stdout
