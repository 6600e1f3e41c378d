"""No argument is silently ignored: each is read, or documented as present for compatibility."""

import ast
import re
from pathlib import Path

import pytest

import jaxnorm

pytestmark = pytest.mark.every_case

ROOT = Path(jaxnorm.__file__).parent
# Arguments that only make norms interchangeable, without an effect on results.
STANDING_IN = {"num_features", "rngs", "use_running_average"}
# `NoNorm` does nothing, as `get_norm` documents.
EXCUSED = {"NoNorm"}


def unread(node: ast.FunctionDef) -> list[str]:
    """The parameters that do not occur in the function's body."""
    given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    names = {n.id for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name)}
    return [name for name in given if name not in names and name != "self"]


def is_public(node: ast.FunctionDef) -> bool:
    """Whether a function is public and not an overload, which has no body."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    private = re.match("_[^_]", node.name) or node.name in EXCUSED
    return not private and "overload" not in decorators


def test_arguments_are_read() -> None:
    """Public functions and the methods of modules read all their arguments."""
    ignored = []
    for path in (
        p for folder in ("norms", "linen", "nnx", "tools") for p in (ROOT / folder).rglob("*.py")
    ):
        tree = ast.parse(path.read_text())
        modules = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name not in EXCUSED]
        for owner in (tree, *(modules if "tools" not in path.parts else ())):
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or not is_public(node):
                    continue
                documents = f"{ast.get_docstring(owner)}\n{ast.get_docstring(node)}"
                for name in unread(node):
                    said = re.search(rf"^ *{name}: (ignored|not read)", documents, re.M)
                    if name not in STANDING_IN or not said:
                        ignored.append(f"{path.name}: {node.name} does not read {name}")
    assert ignored == []
