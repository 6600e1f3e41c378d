"""No argument is accepted and ignored: each is read, or only stands in, as its docstring says."""

import ast
import re
from pathlib import Path

import jaxnorm

ROOT = Path(jaxnorm.__file__).parent
# So that one norm can stand where another does; none of these changes what is computed.
STANDING_IN = {"num_features", "rngs", "use_running_average"}
# What a recipe may have use for, and `NoNorm`, which does nothing: so says `get_norm`.
EXCUSED = {"parameters", "state", "normalized", "NoNorm"}


def unread(node: ast.FunctionDef) -> list[str]:
    """The parameters whose name does not occur in the body."""
    given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    names = {n.id for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name)}
    return [name for name in given if name not in names and name != "self"]


def is_public(node: ast.FunctionDef) -> bool:
    """And no overload, which has no body."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    private = re.match("_[^_]", node.name) or node.name in EXCUSED
    return not private and "overload" not in decorators


def test_arguments_are_read() -> None:
    """By public functions, and by the methods of modules."""
    ignored = []
    for path in (
        p for folder in ("norms", "linen", "nnx", "tools") for p in (ROOT / folder).glob("*.py")
    ):
        tree = ast.parse(path.read_text())
        modules = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name not in EXCUSED]
        for owner in (tree, *(modules if path.parent.name != "tools" else ())):
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or not is_public(node):
                    continue
                documents = f"{ast.get_docstring(owner)}\n{ast.get_docstring(node)}"
                for name in unread(node):
                    said = re.search(rf"^ *{name}: (ignored|not read)", documents, re.M)
                    if name not in STANDING_IN or not said:
                        ignored.append(f"{path.name}: {node.name} does not read {name}")
    assert ignored == []
