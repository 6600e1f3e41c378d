"""The table of collectives: the counts and the model of time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.collectives import LINKS, RESULTS, WAYS, Collective, collectives, markdown, seconds
from tests.compiling import compiler_flags

ROOT = Path(__file__).parents[1]


@pytest.mark.thorough
def test_counted_on_64_devices() -> None:
    """Under shard_map there is one all-reduce forward and one backward, and no other collective anywhere.

    Over a mesh there is one more forward, and newer compilers do not merge the two backward ones.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.collectives", "--channels", "16", "--here"],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=64 {compiler_flags()}",
        },
        check=True,
        capture_output=True,
        text=True,
    )
    rows = {row["way"]: row for row in json.loads(ran.stdout.splitlines()[-1])}
    assert list(rows) == list(WAYS)
    for way, forward, both in ((WAYS[0], 1, {2}), (WAYS[1], 2, {3, 4})):
        sent = rows[way]["forward"], rows[way]["both"]
        assert {c["op"] for part in sent for c in part} == {"all-reduce"}
        assert len(sent[0]) == forward and len(sent[1]) in both
        assert max(c["bytes"] for part in sent for c in part) <= 3 * 16 * 8


def test_bytes_of_an_hlo_text() -> None:
    """All arrays of a collective are counted; other lines are not."""
    text = """
      %a = (f64[16]{0}, f32[2,3]{1,0}) all-reduce(%x, %y), to_apply=%add
      %g = bf16[8,4]{1,0} all-gather-start(%z), dimensions={0}
      %b = f32[16]{0} add(%p, %q)
    """
    assert collectives(text) == [
        Collective("all-reduce", 22, 16 * 8 + 6 * 4),
        Collective("all-gather", 32, 64),
    ]


def test_time_of_an_all_reduce() -> None:
    """Matches a calculation by hand: two steps on two devices, and the bandwidth limit for many bytes."""
    link = LINKS[0]
    assert seconds(link, 2, 0) == pytest.approx(2 * link.seconds_per_step)
    size = 10**12
    assert seconds(link, 8, size) == pytest.approx(
        2 * 7 / 8 * size / link.bytes_per_second, rel=1e-3
    )


def test_readme_has_the_figures_of_the_results() -> None:
    """The tables of benchmarks/README.md match the stored figures."""
    readme = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    found = json.loads((RESULTS / "collectives-jax0.10.2.json").read_text())
    assert [line for line in markdown(found).splitlines() if line and line not in readme] == []
