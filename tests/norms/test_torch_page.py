"""docs/coming-from-pytorch.md covers every argument that the PyTorch tests translate."""

import inspect
import re
from operator import attrgetter
from pathlib import Path

import pytest

from tests.norms.torch_rows import PEERS, PLACEMENT, Peer

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from-pytorch.md").read_text()
THEIRS = [pytest.param(peer, name, id=name) for peer in PEERS for name in peer.theirs]


def arguments(theirs: str) -> dict[str, str]:
    """Arguments in the table under the heading with this name, and their defaults ("" for none)."""
    sections = re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", PAGE, re.M)
    (table,) = (text for heading, text in sections if theirs.split(".")[-1] in heading.split(", "))
    return dict(re.findall(r"^\| `(\w+)(?:=(.+?))?` \|", table, re.M))


@pytest.mark.parametrize(("peer", "theirs"), THEIRS)
def test_page_has_every_argument(peer: Peer, theirs: str) -> None:
    """The page has one row for each argument and no others, and names the right norm."""
    assert {a for a in arguments(theirs) if a not in PLACEMENT} == peer.becomes.keys()
    name = theirs.split(".")[-1]
    overview = re.search(rf"^\| .*`(?:\w+\.)?{name}`.*? \| `(?:jn\.)?(\w+)` \|", PAGE, re.M)
    assert overview and overview[1] == peer.ours


@pytest.mark.parametrize(("peer", "theirs"), THEIRS)
def test_defaults_on_the_page(peer: Peer, theirs: str) -> None:
    """The defaults on the page are PyTorch's, and arguments without one have none in PyTorch."""
    torch = pytest.importorskip("torch", minversion="2.13", reason="PyTorch 2.13 is not installed")
    parameters = inspect.signature(attrgetter(theirs)(torch)).parameters
    for name, written in arguments(theirs).items():
        if name in parameters:  # only one class has process_group
            default = parameters[name].default
            assert written == ("" if default is inspect.Parameter.empty else repr(default)), name
