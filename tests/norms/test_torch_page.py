"""docs/coming-from-pytorch.md says what becomes of every argument that the tests of PyTorch translate."""

import inspect
import re
from operator import attrgetter
from pathlib import Path

import pytest

from tests.norms.torch_rows import PEERS, PLACEMENT, Peer

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from-pytorch.md").read_text()
THEIRS = [pytest.param(peer, name, id=name) for peer in PEERS for name in peer.theirs]


def arguments(theirs: str) -> dict[str, str]:
    """Arguments in the table under the heading of this name, and their defaults, "" for none."""
    sections = re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", PAGE, re.M)
    (table,) = (text for heading, text in sections if theirs.split(".")[-1] in heading.split(", "))
    return dict(re.findall(r"^\| `(\w+)(?:=(.+?))?` \|", table, re.M))


@pytest.mark.parametrize(("peer", "theirs"), THEIRS)
def test_page_has_every_argument(peer: Peer, theirs: str) -> None:
    """A row for each argument, none of which is left over; and which of our norms it is about."""
    assert {a for a in arguments(theirs) if a not in PLACEMENT} == peer.becomes.keys()
    name = theirs.split(".")[-1]
    overview = re.search(rf"^\| .*`(?:\w+\.)?{name}`.*? \| `(?:jn\.)?(\w+)` \|", PAGE, re.M)
    assert overview and overview[1] == peer.ours


@pytest.mark.parametrize(("peer", "theirs"), THEIRS)
def test_defaults_on_the_page(peer: Peer, theirs: str) -> None:
    """The defaults on the page are PyTorch's, and that what it calls required has none."""
    torch = pytest.importorskip("torch", minversion="2.13", reason="PyTorch 2.13 is not installed")
    parameters = inspect.signature(attrgetter(theirs)(torch)).parameters
    for name, written in arguments(theirs).items():
        if name in parameters:  # process_group is one class's alone
            default = parameters[name].default
            assert written == ("" if default is inspect.Parameter.empty else repr(default)), name
