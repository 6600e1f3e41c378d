"""The cost of norms on a TPU and a GPU, as their compilers estimate it, and the parser of these estimates."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.accelerators import hlo, programs, tables, timed

ROOT = Path(__file__).parents[1]
TEXT = """HloModule jit_f

%sliced_and_whole (p.0: bf16[8,128], p.1: f32[128]) -> f32[128] {
  %p.0 = bf16[8,128]{1,0} parameter(0)
  %p.1 = f32[128]{0} parameter(1)
  %s = bf16[1,128]{1,0} slice(%p.0), slice={[0:1], [0:128]}
  %c = f32[1,128]{1,0} convert(%s)
  %b = f32[128]{0} bitcast(%c)
  ROOT %a = f32[128]{0} add(%b, %p.1)
}

%body (t: (s32[], f32[128])) -> (s32[], f32[128]) {
  %t = (s32[], f32[128]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %v = f32[128]{0} get-tuple-element(%t), index=1
  %n = f32[128]{0} negate(%v), backend_config={"estimated_cycles":"10"}
  ROOT %r = (s32[], f32[128]{0}) tuple(%i, %n)
}

%near (q: f32[128]) -> f32[128] {
  ROOT %q = f32[128]{0} parameter(0)
}

%far (q.1: f32[128]) -> f32[128] {
  %q.1 = f32[128]{0} parameter(0)
  ROOT %e = f32[128]{0} exponential(%q.1)
}

ENTRY %main (x: bf16[8,128], y: f32[128], p: pred[]) -> f32[128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[128]{0} parameter(1)
  %p = pred[] parameter(2)
  %f = f32[128]{0} fusion(%x, %y), calls=%sliced_and_whole, backend_config={"estimated_cycles":"7"}
  %z = s32[] constant(0)
  %w = (s32[], f32[128]{0}) tuple(%z, %f)
  %l = (s32[], f32[128]{0}) while(%w), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %g = f32[128]{0} get-tuple-element(%l), index=1
  %k = f32[128]{0} conditional(%p, %g, %g), true_computation=%far, false_computation=%near
  %h = (f32[128]{0}, f32[]) all-reduce(%k, %s), to_apply=%sum
  ROOT %o = f32[128]{0} get-tuple-element(%h), index=0
}
"""


def test_an_account_of_a_program() -> None:
    """Slices count as slices, loops as often as they run, conditionals by their likely branch."""
    kernels, collectives = hlo.run_in_order(TEXT)
    assert [kernel.op for kernel in kernels] == ["fusion", "negate", "negate", "negate"]
    assert kernels[0].read == 128 * 2 + 128 * 4
    assert kernels[0].written == 128 * 4
    assert sum(kernel.cycles for kernel in kernels) == 7 + 3 * 10
    assert collectives == [hlo.Collective("all-reduce", 128 * 4 + 4)]


def test_programs_are_timed_in_turns() -> None:
    """Programs are timed on any device, which adds a column to the table."""
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)

    def of(library: programs.Library) -> Any:
        return programs.steps_of(programs.layer(library, "BatchNorm", x.dtype), "both", x)

    program = programs.Program("BatchNorm (8, 16)", "float32", "both", of, 512)
    taken = timed.seconds(program, rounds=2)
    assert min(taken.values()) > 0
    account = {"cycles": None, "kernels": 2, "moved": 9, "temporaries": 0, "collectives": []}
    row = {
        **{"target": "cpu", "program": program.name, "dtype": "float32", "phase": "both"},
        **{"unit": 512, "floor": None, "jaxnorm": account, "Flax": account},
    }
    for seconds in (None, taken):
        table = tables.details({"versions": "", "rows": [{**row, "seconds": seconds}]})
        assert ("time, on a device" in table) == (seconds is not None)


def accounts(platform: str, target: str, folder: Path, *parts: str) -> list[dict[str, Any]]:
    """The compiler's estimates for our norms and Flax's, from the platform's own environment."""
    python = ROOT / f".venv-{platform}" / "bin" / "python"
    if not python.exists():
        pytest.skip(
            f"`make accelerators` makes the environment with the {platform.upper()} compiler"
        )
    figures = folder / "figures.json"
    arguments = [platform, "--targets", target, "--quick", "--out", figures, "--parts", *parts]
    subprocess.run([python, "-m", "benchmarks.accelerators", *arguments], cwd=ROOT, check=True)
    return json.loads(figures.read_text())["rows"]


@pytest.mark.thorough
def test_norms_and_blocks_on_a_tpu(tmp_path: Path) -> None:
    """No copy of x is stored, and sums fuse into the op that makes x; otherwise a block would take longer."""
    rows = accounts("tpu", "v5e", tmp_path, "norms", "blocks")
    assert len(rows) == 2 * (5 * 2 + 1 + 2) + 6  # norms, evaluation, activations; blocks
    for row in rows:
        ours, flax = row["jaxnorm"], row["Flax"]
        assert ours["temporaries"] <= flax["temporaries"] + 0.01 * row["unit"], row
        assert ours["moved"] <= 1.01 * flax["moved"], row
        forward = row["dtype"] == "float32" and row["phase"] == "forward"
        assert ours["cycles"] <= (1.05 if forward else 1.02) * flax["cycles"], row


@pytest.mark.thorough
def test_blocks_on_another_tpu(tmp_path: Path) -> None:
    """XLA for a v7 computes batch norm's dx in the convolutions that read it, if dx is simple enough."""
    for row in accounts("tpu", "v7", tmp_path, "blocks"):
        assert row["dtype"] == "bfloat16"
        assert row["jaxnorm"]["cycles"] <= 1.02 * row["Flax"]["cycles"], row
        more = 0.02 if "small x" in row["program"] else 0.01  # 0.014 of a small x
        assert row["jaxnorm"]["temporaries"] <= row["Flax"]["temporaries"] + more * row["unit"], row


@pytest.mark.thorough
def test_a_tpu_keeps_a_small_x_in_its_own_memory(tmp_path: Path) -> None:
    """In float32 too, where a branch may take the sums again, since the branch reads a copy of x."""
    rows = accounts("tpu", "v5e", tmp_path, "blocks", "--dtypes", "float32")
    of_batch_norm = [row for row in rows if "BatchNorm" in row["program"]]
    assert len(of_batch_norm) == 3
    for row in of_batch_norm:
        assert row["jaxnorm"]["cycles"] <= 1.04 * row["Flax"]["cycles"], row


@pytest.mark.thorough
def test_fused_norms_on_a_tpu(tmp_path: Path) -> None:
    """Norms of sums, gated norms and a fused silu take as long as Flax's with separate layers."""
    rows = accounts("tpu", "v5e", tmp_path, "fused")
    assert len(rows) == 6 * 2 * 2
    for row in rows:
        assert row["jaxnorm"]["cycles"] <= 1.06 * row["Flax"]["cycles"], row


@pytest.mark.thorough
def test_fused_norms_on_a_gpu(tmp_path: Path) -> None:
    """They move as many bytes forward, and at most N more in all; silu costs group norm nothing.

    Behind a dense layer they move no more at all, and the sum and its norm cost 4 N.
    """
    rows = accounts("gpu", "h100", tmp_path, "fused")
    assert len(rows) == 6 * 2 * 2
    for row in rows:
        ours, unit = row["jaxnorm"]["moved"], row["unit"]
        in_model = row["program"].startswith("dense") or row["phase"] == "forward"
        assert ours - row["Flax"]["moved"] <= (0.05 if in_model else 1.1) * unit, row
        if row["program"].startswith("dense") and row["phase"] == "forward":
            assert ours <= (row["floor"] + 0.05) * unit, row
        if row["program"].startswith("GroupNorm"):
            assert ours <= (row["floor"] + 0.05) * unit, row


@pytest.mark.thorough
def test_norms_and_blocks_on_a_gpu(tmp_path: Path) -> None:
    """No copy of x is stored, and no pass over x and no kernel is added to a forward and backward pass."""
    rows = accounts("gpu", "h100", tmp_path, "norms", "blocks")
    assert len(rows) == 2 * (5 * 2 + 1 + 2) + 6  # norms, evaluation, activations; blocks
    for row in rows:
        ours, flax = row["jaxnorm"], row["Flax"]
        assert ours["temporaries"] <= flax["temporaries"] + 0.01 * row["unit"], row
        assert ours["moved"] <= 1.02 * flax["moved"], row
        if row["program"].startswith("BatchNorm") and "activation" in row["program"]:
            copied = 2 if "two" in row["program"] else 0  # a result that is returned twice
            assert ours["moved"] <= (row["floor"] + copied + 0.1) * row["unit"], row
        alone = row["phase"] == "both" and "," not in row["program"].split(" (")[0]
        assert not alone or ours["kernels"] <= flax["kernels"], row
        if row["program"].startswith("LayerNorm") and row["phase"] == "forward":
            assert ours["kernels"] == 1, row


@pytest.mark.thorough
@pytest.mark.parametrize(("platform", "target"), [("tpu", "v5e"), ("gpu", "h100")])
def test_batch_norm_over_devices(platform: str, target: str, tmp_path: Path) -> None:
    """A few numbers per feature are all-reduced, and nothing is gathered."""
    rows = accounts(platform, target, tmp_path, "sync")
    assert len(rows) == 4
    for row in rows:
        ours, flax = row["jaxnorm"]["collectives"], row["Flax"]["collectives"]
        assert {c["op"] for c in ours} == {"all-reduce"}, row
        # Under jit over a mesh, a GPU first reads a shift from the whole x.
        more = platform == "gpu" and "jit" in row["program"]
        assert len(ours) <= len(flax) + more, row
        assert sum(c["bytes"] for c in ours) <= 256 * 4 * (6 if row["phase"] == "forward" else 8)
