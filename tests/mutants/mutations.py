"""One-line changes of a file of the package, each of which some test should notice.

A change is found in the syntax tree and made in the text: a few characters are replaced, and the rest of
the file stays the same, line numbers included.
"""

import ast
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from operator import attrgetter, itemgetter

Lines = tuple[int, int]
"""The first and the last line."""
Edit = tuple[int, int, bytes]
"""Start and end of the replaced text, in bytes, and the new text."""

OPERATORS: Mapping[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.MatMult: ("@", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Not: ("not ", ""),
    ast.USub: ("-", ""),
    ast.UAdd: ("+", "-"),
    ast.Invert: ("~", ""),
}
NEGATED_BY_OPERATOR = (ast.Is, ast.IsNot, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
# Calls for types or messages; no test should notice a change of their arguments.
LEFT_ALONE = {"NewType", "ParamSpec", "TypeVar", "warn"}
OF_TYPES = {"annotation", "decorator_list", "returns", "type_params"}


@dataclass(frozen=True)
class Mutation:
    """A change of one file.

    Attributes:
        path: the file, relative to the root of the repository.
        line: where the change starts.
        edits: the replacements, which keep the number of lines.
        reached_at: lines in order of precedence. The tests that reach the first of them should notice the
            change; if there are none, those that reach the second, and so on.
        at_import: whether the line runs at import, like a default. Then a test may notice the change
            without running the package, just by inspecting it.
    """

    path: str
    line: int
    edits: tuple[Edit, ...]
    reached_at: tuple[Lines, ...]
    at_import: bool

    def apply(self, source: str) -> str:
        """The file with the change."""
        raw = source.encode()
        for start, stop, new in sorted(self.edits, reverse=True):
            raw = raw[:start] + new + raw[stop:]
        return raw.decode()

    def shown(self, source: str) -> tuple[str, str]:
        """The changed lines, before and after."""
        end = max(stop for _, stop, _ in self.edits)
        last = source.encode()[:end].count(b"\n") + 1
        before, after = (
            " ".join(line.strip() for line in text.split("\n")[self.line - 1 : last])
            for text in (source, self.apply(source))
        )
        return before, after

    def is_valid(self, source: str) -> bool:
        """Whether the file compiles with the change and is a different program."""
        try:
            tree = ast.parse(self.apply(source))
            compile(tree, self.path, "exec", dont_inherit=True)
        except SyntaxError:
            return False
        return ast.dump(tree) != ast.dump(ast.parse(source))


def mutations_of(path: str, source: str) -> list[Mutation]:
    """Every change of a file, in order."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda mutation: (mutation.line, mutation.edits))


def sample(sources: Mapping[str, str], count: int, seed: int) -> list[Mutation]:
    """Draws ``count`` changes of the files on different lines, so that dense lines do not dominate.

    Each line is drawn by its own text: lines that are added, removed or moved leave the others in the sample.
    """
    lines: list[tuple[float, list[Mutation]]] = []
    for path, source in sources.items():
        texts, same = source.splitlines(), Counter()
        for line, group in groupby(mutations_of(path, source), attrgetter("line")):
            text = texts[line - 1].strip()
            same[text] += 1
            rng, changes = random.Random(f"{seed} {path} {text} {same[text]}"), list(group)
            lines.append((rng.random(), rng.sample(changes, len(changes))))
    drawn: list[Mutation] = []
    for _, changes in sorted(lines, key=itemgetter(0)):
        if len(drawn) < count:
            drawn += [m for m in changes if m.is_valid(sources[m.path])][:1]
    return sorted(drawn, key=lambda mutation: (mutation.path, mutation.line))


class _Finder(ast.NodeVisitor):
    """Walks a file and keeps track of the lines that tests of each node reach.

    Inside a function these are the lines of the statement, or of its header. Code that runs at import is
    reached through its use: a default by the body of its function, a field by the methods of its class.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.raw = source.encode()
        self.offsets = [0, *accumulate(map(len, self.raw.splitlines(keepends=True)))]
        self.found: list[Mutation] = []
        self.in_function = False
        self.statement: Lines | None = None
        self.scopes: tuple[Lines, ...] = ((1, len(self.offsets)),)

    def visit(self, node: ast.AST) -> None:
        """Adds the changes of a node and of its children."""
        if is_left_alone(node):
            return
        outer = self.in_function, self.statement, self.scopes
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                body = (node.body[0].lineno, lines_of(node)[1])
                self.in_function, self.scopes = False, (body, *self.scopes)
                self.visit(node.args)
                self.in_function, self.statement = True, None
                for statement in node.body:
                    self.visit(statement)
            case ast.ClassDef():
                self.in_function, self.scopes = False, (lines_of(node), *self.scopes)
                self.visit_fields(node)
            case _:
                if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                    is_compound = hasattr(node, "body") or hasattr(node, "cases")
                    self.statement = None if is_compound else lines_of(node)
                elif self.statement is None and isinstance(node, ast.expr | ast.pattern):
                    self.statement = lines_of(node)
                for edits in self.changes(node):
                    self.add(edits)
                self.visit_fields(node)
        self.in_function, self.statement, self.scopes = outer

    def visit_fields(self, node: ast.AST) -> None:
        """Visits the children of a node, except types and decorators."""
        for name, value in ast.iter_fields(node):
            if name not in OF_TYPES:
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)

    def add(self, edits: Iterable[Edit]) -> None:
        """Adds a change, with newlines that keep all later lines in place."""
        edits = tuple(sorted(edits))
        line = self.raw[: edits[0][0]].count(b"\n") + 1
        reached_at = (self.statement or (line, line),) if self.in_function else self.scopes
        self.found.append(Mutation(self.path, line, edits, reached_at, not self.in_function))

    def changes(self, node: ast.AST) -> Iterator[list[Edit]]:
        """The changes of a node itself."""
        match node:
            case ast.Constant(value=bool() as value):
                yield [(*self.bounds(node), repr(not value).encode())]
            case ast.Constant(value=int() | float() as value):
                yield [(*self.bounds(node), repr(value + 1).encode())]
            case ast.BinOp(op=ast.BitOr()) if not self.in_function:
                pass  # a union of types
            case ast.BinOp(left=left, op=op, right=right) if not (is_text(left) or is_text(right)):
                yield self.swapped(op, left, right)
            case ast.AugAssign(target=left, op=op, value=right):
                yield self.swapped(op, left, right)
            case ast.Compare(left=left, ops=ops, comparators=others):
                for op, (a, b) in zip(ops, pairwise([left, *others]), strict=True):
                    yield self.swapped(op, a, b)
            case ast.BoolOp(op=op, values=values):
                yield [edit for a, b in pairwise(values) for edit in self.swapped(op, a, b)]
            case ast.UnaryOp(op=op, operand=operand) if not isinstance(operand, ast.Constant):
                yield self.swapped(op, None, operand, self.bounds(node)[0])
            case ast.If(test=test) | ast.IfExp(test=test) if not is_negated_by_operator(test):
                start, stop = self.bounds(test)
                yield [(start, start, b"not ("), (stop, stop, b")")]
            case ast.Call():
                yield from self.changes_of_call(node)

    def changes_of_call(self, node: ast.Call) -> Iterator[list[Edit]]:
        """Removes a keyword argument, or replaces the call by its argument, or drops the dtype."""
        for keyword in node.keywords:
            if not is_left_alone(keyword):
                yield [self.without(keyword)]
        match name_of(node), node.func, node.args:
            case "stop_gradient", _, [x]:
                yield self.only(node, x)
            case "convert_element_type", _, [x, _]:
                yield self.only(node, x)
            case "astype", ast.Attribute(value=x), _:
                yield self.only(node, x)
            case "asarray" | "array", function, [x, _]:
                yield self.only(node, x, self.bounds(function)[1])

    def swapped(
        self, op: ast.AST, left: ast.expr | None, right: ast.expr, start: int = 0
    ) -> list[Edit]:
        """Replaces the operator between two operands, or removes it in front of one."""
        start = self.bounds(left)[1] if left else start
        stop = self.bounds(right)[0]
        old, new = OPERATORS[type(op)]
        between = self.raw[start:stop].decode()
        pattern = r"\s+".join(map(re.escape, old.split())) + (r"\s*" if not new else "")
        return [(start, stop, re.sub(pattern, new, between, count=1).encode())]

    def without(self, keyword: ast.keyword) -> Edit:
        """Removes a keyword argument and the comma after or before it."""
        start, stop = self.bounds(keyword)
        if after := re.match(rb"\s*,", self.raw[stop:]):
            stop += after.end()
        elif before := re.search(rb",\s*$", self.raw[:start]):
            start = before.start()
        return start, stop, b"\n" * self.raw[start:stop].count(b"\n")

    def only(self, node: ast.expr, kept: ast.expr, after: int | None = None) -> list[Edit]:
        """Keeps only ``kept`` of a node, or of its part after ``after``."""
        start, stop = self.bounds(node)
        start = start if after is None else after
        kept_start, kept_stop = self.bounds(kept)
        before, behind = self.raw[start:kept_start], self.raw[kept_stop:stop]
        return [
            (start, kept_start, b"(" + b"\n" * before.count(b"\n")),
            (kept_stop, stop, b"\n" * behind.count(b"\n") + b")"),
        ]

    def bounds(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        """Where a node starts and ends, in bytes."""
        first, last = lines_of(node)
        start = self.offsets[first - 1] + node.col_offset
        return start, self.offsets[last - 1] + (node.end_col_offset or 0)


def lines_of(node: ast.AST) -> Lines:
    """The lines of a node, if it has any."""
    first: int = getattr(node, "lineno", 0)
    return first, getattr(node, "end_lineno", None) or first


def name_of(call: ast.Call) -> str:
    """The name of the called function, without the object in front of it."""
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def is_left_alone(node: ast.AST) -> bool:
    """Whether a node is never changed: messages, assertions, imports and types."""
    match node:
        case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.If(test=test):
            return "TYPE_CHECKING" in ast.unparse(test)
        case ast.AnnAssign(annotation=annotation):
            return ast.unparse(annotation).endswith("TypeAlias")
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Call():
            return name_of(node) in LEFT_ALONE
        case ast.keyword(arg="strict"):  # in zip: an assertion
            return True
    return False


def is_text(node: ast.expr) -> bool:
    """Whether a node is a string or an f-string."""
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def is_negated_by_operator(test: ast.expr) -> bool:
    """Whether a change of the operator or of ``not`` already negates the test."""
    match test:
        case ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Compare(ops=[op]):
            return isinstance(op, NEGATED_BY_OPERATOR)
    return False
