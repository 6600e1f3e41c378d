"""`make mutants` makes the documented changes and leaves the rest of each file alone."""

import textwrap
from pathlib import Path

import pytest

from tests.mutants.mutations import mutations_of, sample

PACKAGE = Path(__file__).parents[1] / "jaxnorm"


def changed(source: str) -> set[str]:
    """All results of changing a line of the source."""
    found = mutations_of("a.py", source)
    assert all(m.is_valid(source) for m in found)
    return {m.shown(source)[1] for m in found}


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("a + b", ["a - b"]),
        ("(a) * (b)", ["(a) / (b)"]),
        ("a @ b", ["a * b"]),
        ("a | b", ["a & b"]),
        ("a += b", ["a -= b"]),
        ("-a", ["a"]),
        ("a < b <= c", ["a <= b <= c", "a < b < c"]),
        ("a is not b", ["a is b"]),
        ("a not in b", ["a in b"]),
        ("a and b and c", ["a or b or c"]),
        ("not (a or b)", ["(a or b)", "not (a and b)"]),
        ("x = 2", ["x = 3"]),
        ("x = -0.5", ["x = -1.5"]),
        ("x = True", ["x = False"]),
        ("f(a, b=c)", ["f(a)"]),
        ("f(b=c, **d)", ["f( **d)", "f(b=c)"]),
        ("a if b else c", ["a if not (b) else c"]),
        ("a if b is c else d", ["a if b is not c else d"]),
        ("lax.stop_gradient((a, b))", ["((a, b))"]),
        ("(a).astype(d).b", ["(a).b"]),
        ("jnp.asarray(x, d)", ["jnp.asarray(x)"]),
        ("lax.convert_element_type(x, d)", ["(x)"]),
    ],
)
def test_a_change(line: str, becomes: list[str]) -> None:
    """A line in a function has exactly the expected changes."""
    assert changed(f"def f():\n    {line}\n") == set(becomes)


def test_branches_are_swapped() -> None:
    """Branches are swapped by negating the test, unless its operator is changed."""
    source = "def f():\n    if a:\n        b()\n    elif not c:\n        d()\n"
    assert changed(source) == {"if not (a):", "elif c:"}


@pytest.mark.parametrize(
    "source",
    [
        '"""A text, 1 + 1."""',
        "import a.b as c",
        "X = int | None",
        "X: TypeAlias = dict[str, 1]",
        '__all__ = ["x"] + [1]',
        "T = TypeVar('T', bound=int)",
        "assert x == 1",
        "raise ValueError('a' + str(1))",
        "x = f'{1 + 1}' + y",
        "@partial(jit, static_argnums=1)\ndef f(x: Literal[1]) -> Literal[2]:\n    pass",
        "if TYPE_CHECKING:\n    x = 1",
        "warnings.warn('x', stacklevel=2)",
        "zip(a, b, strict=True)",
    ],
)
def test_left_alone(source: str) -> None:
    """Types, messages, assertions and imports are not changed."""
    assert changed(source) == set()


def test_lines_stay() -> None:
    """A change does not move any following line."""
    source = textwrap.dedent("""\
        def f():
            y = jnp.asarray(
                x,
                d,
            )
            return g(
                a=y,  # σ
            )
    """)
    for mutation in mutations_of("a.py", source):
        after = mutation.apply(source)
        assert mutation.is_valid(source)
        assert after.count("\n") == source.count("\n")
        assert "# σ" in after


def test_where_a_change_is_reached() -> None:
    """A statement is covered by tests that run its lines, import-time code by tests that use it."""
    source = textwrap.dedent("""\
        A = 1
        class B:
            c: int = 2
            def f(self, d=3):
                e(
                    4,
                )
                for g in range(5):
                    h()
    """)
    found = {m.line: m.reached_at for m in mutations_of("a.py", source)}
    whole = found[1][-1]
    assert found == {
        1: (whole,),
        3: ((2, 9), whole),
        4: ((5, 9), (2, 9), whole),
        6: ((5, 7),),
        8: ((8, 8),),
    }


def test_sample() -> None:
    """The sample depends only on the seed, and has at most one change per line."""
    sources = {"a.py": "x = 1 + 2 * 3\n" * 20, "b.py": "y = 1 < 2\n" * 20}
    drawn = sample(sources, 10, seed=1)
    assert drawn == sample(dict(reversed(sources.items())), 10, seed=1)
    assert drawn != sample(sources, 10, seed=2)
    assert len({(m.path, m.line) for m in drawn}) == 10
    assert len(sample(sources, 100, seed=1)) == 40


def test_the_sample_stays_when_lines_move() -> None:
    """Lines that are added before others, or to another file, do not change what is drawn of these."""
    source = "".join(f"a{i} = b{i} + {i}\n" for i in range(40))
    shown = [m.shown(source) for m in sample({"x.py": source}, 10, seed=1)]
    later = "import os\n\n" + source
    assert [m.shown(later) for m in sample({"x.py": later}, 10, seed=1)] == shown
    both = {"x.py": later, "y.py": "z = 1 + 1\n"}
    assert len(set(shown) & {m.shown(both[m.path]) for m in sample(both, 10, seed=1)}) >= 9


def test_a_file_of_the_package() -> None:
    """Every change of a real file compiles."""
    path = max((PACKAGE / "core").rglob("*.py"), key=lambda path: path.stat().st_size)
    source = path.read_text()
    found = mutations_of(path.name, source)
    assert len(found) > 20
    assert all(m.is_valid(source) for m in found)
