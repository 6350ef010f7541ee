"""The documents say what is true: docstring examples run, and the README's commands are commands."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest
from mambalab.harness.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = ("ext", "models", "tasks", "harness", "reports")
MODULES = sorted(
    f"mambalab.{room}.{path.stem}" for room in ROOMS for path in (ROOT / room).glob("*.py") if path.stem != "__main__"
)
COMMANDS = sorted(set(re.findall(r"^ {0,4}(mambalab .+?)(?:\s+#.*)?$", README, re.MULTILINE)))


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    assert doctest.testmod(import_module(module)).failed == 0


@pytest.mark.parametrize("module", MODULES)
def test_every_module_and_public_name_says_what_it_is_for(module):
    path = ROOT / module.removeprefix("mambalab.").replace(".", "/")
    tree = ast.parse(path.with_suffix(".py").read_text())
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(tree)
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_the_readme_has_commands_to_check():
    assert {shlex.split(line)[1] for line in COMMANDS} >= {"eval", "report", "fetch", "parity", "doctor", "lm-eval"}


@pytest.mark.parametrize("line", COMMANDS)
def test_the_readme_commands_are_accepted_by_the_command_line(line):
    name, *arguments = shlex.split(line)[1:]
    command = cli.commands[name]
    if isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands[name]
    # Parsing refuses what is unknown or missing; nothing runs.
    assert command.make_context(name, arguments).params


@pytest.mark.parametrize("target", re.findall(r"^ {4}make (\w+)$", README, re.MULTILINE))
def test_the_readme_targets_are_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_readme_python_names_what_exists(snippet):
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(import_module(str(node.module)), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert all(import_module(alias.name) for alias in node.names)


def test_files_and_functions_stay_small():
    for room in (*ROOMS, "tests"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert text.count("\n") <= 350, path.name
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"
