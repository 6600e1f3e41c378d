"""What norms are lowered to on platforms that the tests do not run on."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxnorm as jn
from jaxnorm.core.lowering._cpu_hints import divided, stored_share
from tests.programs import equations

SHAPE = (4, 6, 6, 8)
NORMS: dict[str, Callable[..., jax.Array]] = {
    "batch": lambda x, s, b: jn.batch_norm(x, jn.init_running_stats(8), s, b)[0],
    "layer": jn.layer_norm,
    "rms": lambda x, s, b: jn.rms_norm(x, s),
    "group": lambda x, s, b: jn.group_norm(x, s, b, num_groups=2),
}


SILU = partial(jn.group_norm, num_groups=2, activation="silu")


def lowered(
    norm: str | Callable[..., jax.Array],
    platform: str,
    dtype: Any = jnp.bfloat16,
    shape: tuple[int, ...] = SHAPE,
) -> str:
    """The StableHLO of a norm and its gradients."""
    apply = NORMS[norm] if isinstance(norm, str) else norm

    def step(x: Any, scale: Any, bias: Any, dy: Any) -> Any:
        y, pull = jax.vjp(apply, x, scale, bias)
        return y, pull(dy.astype(y.dtype))

    x, parameter = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((8,), jnp.float32)
    exported = export.export(jax.jit(step), platforms=[platform])(x, parameter, parameter, x)
    return exported.mlir_module()


def reductions(text: str) -> list[int]:
    """The number of arrays that each reduction sums."""
    lines = [line for line in text.splitlines() if "stablehlo.reduce(" in line]
    return [line.count(" init: ") for line in lines]


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("norm", NORMS)
def test_sums_of_each_platform(norm: str, platform: str) -> None:
    """A GPU takes several sums in one reduction, a TPU one at a time; only a CPU splits an axis."""
    text = lowered(norm, platform)
    most = 1 if platform == "tpu" or norm == "rms" else 2
    assert max(reductions(text)) == most
    split = [line for line in text.splitlines() if "stablehlo.reshape" in line and "4x6x6" in line]
    assert not [line for line in split if line.count("x") > 20]


def test_two_sums_as_one_complex_sum() -> None:
    """A GPU takes sums of values with a common origin as one, unless they are along rows."""
    norms = {**NORMS, "silu": SILU}
    counts = {name: lowered(f, "cuda").count("stablehlo.complex") for name, f in norms.items()}
    assert counts == {"batch": 1, "layer": 0, "rms": 0, "group": 1, "silu": 2}
    for platform in ("cpu", "tpu"):
        assert "stablehlo.complex" not in lowered(SILU, platform)


@pytest.mark.parametrize("norm", NORMS)
def test_only_what_is_narrow_is_sliced(norm: str) -> None:
    """A slice of x is taken before widening; otherwise the compiler would store all of x in float32."""
    slices = [line for line in lowered(norm, "cuda").splitlines() if "stablehlo.slice" in line]
    assert bool(slices) == (norm != "rms")
    assert not [line for line in slices if "xf32>" in line]


@pytest.mark.parametrize("norm", NORMS)
def test_a_tpu_reads_nothing_of_x_before_its_sums(norm: str) -> None:
    """A TPU reads nothing of x before its sums, so they can fuse into the op that produces x."""
    text = lowered(norm, "tpu")
    assert "stablehlo.slice" not in text and "stablehlo.case" not in text


def test_a_tpu_takes_sums_again_of_too_many_values_for_exact_ones() -> None:
    """In a branch, if the running mean is not near the mean."""
    text = lowered("batch", "tpu", shape=(64, 32, 33, 8))
    assert "stablehlo.slice" not in text
    assert text.count("stablehlo.case") == 1


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("mebibytes", "copied"), [(64, True), (65, False)])
def test_a_chip_holds_its_part_of_x(mebibytes: int, copied: bool, mapped: bool) -> None:
    """Whether a branch reads a copy of x depends on the size of a device's part, however x is divided."""
    mesh, rows = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,)), P("batch")

    def sums(x: jax.Array) -> Any:
        name = "batch" if mapped else None
        return jn.batch_norm(x, jn.init_running_stats(128), axis_name=name)

    if mapped:
        sums = jax.shard_map(sums, mesh=mesh, in_specs=rows, out_specs=(rows, P()))
    shape = (2 * mebibytes * 2**12, 128)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, rows))
    text = jax.jit(sums).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.case" in text
    assert ("optimization_barrier" in text) == copied


def test_small_arrays_are_stored_on_a_cpu_alone() -> None:
    """Only a CPU stores small arrays, through a division; elsewhere each would be a separate kernel."""
    counts = [lowered("rms", p).count("stablehlo.divide") for p in ("cpu", "cuda", "tpu")]
    assert counts[0] > counts[1] == counts[2]


def test_x_is_read_apart_on_a_cpu_where_it_is_differentiated() -> None:
    """On a CPU a barrier precedes the loops of the backward pass; other passes and platforms have none."""
    assert "optimization_barrier" in lowered("batch", "cpu")
    assert "optimization_barrier" not in lowered("batch", "cuda") + lowered("batch", "tpu")
    forward = jax.jit(lambda x: NORMS["batch"](x, jnp.ones(8), jnp.ones(8)))
    assert "optimization_barrier" not in forward.lower(jnp.ones(SHAPE)).as_text()


def gradient(norm: Callable[..., Any], *args: Any) -> list[Any]:
    """The equations of the gradient of a norm's sum of squares."""
    loss = jax.grad(lambda *a: (norm(*a).astype(jnp.float32) ** 2).sum(), tuple(range(len(args))))
    return list(equations(jax.make_jaxpr(loss)(*args).jaxpr))


@pytest.mark.parametrize(
    ("norm", "dtype", "square"),
    [
        (jn.rms_norm, jnp.float32, "square_in_memory"),
        (jn.rms_norm, jnp.bfloat16, "_square"),
        (partial(jn.rms_norm, fraction=0.5), jnp.float32, "_square"),
        (jn.l2_normalize, jnp.float32, "square_in_memory"),
        (jn.l2_normalize, jnp.bfloat16, "_square"),
        (jn.filter_response_norm, jnp.float32, "_square"),
        (jn.global_response_norm, jnp.float32, "_square"),
    ],
)
def test_what_is_squared_in_memory(norm: Any, dtype: Any, square: str) -> None:
    """Only an x that is in memory as it is may be squared before its sum, in a program of its own."""
    functions = [eqn.params.get("f") for eqn in gradient(norm, jnp.ones(SHAPE, dtype))]
    names = [f.__name__ for f in functions if f is not None]
    assert names[0] == square and not {"_square", "square_in_memory"} - {square} & set(names)


def test_partial_sums_are_not_alive_at_once() -> None:
    """In layer norm, whose gradients take two passes, small arrays are stored after the sums of the first."""
    of_layer = gradient(jn.layer_norm, jnp.ones(SHAPE), jnp.ones(8), jnp.ones(8))
    stored = [eqn for eqn in of_layer if str(eqn.primitive) == "norm_stored"]
    after = [eqn.invars[0].aval.shape for eqn in stored if len(eqn.invars) == 2]
    assert after and SHAPE not in after


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_count_is_read_from_memory_on_a_cpu_alone(dtype: str) -> None:
    """It divides sums and their derivatives, mapped or not, outside of jit too, and where sums are NaN."""
    totals, like = jnp.asarray([6.0, jnp.nan, 9.0], dtype), jnp.asarray([1.0, jnp.nan, 0.0], dtype)
    want = jnp.asarray([2.0, jnp.nan, 3.0], dtype)

    def third(total: jax.Array, like: jax.Array) -> jax.Array:
        return divided(total, 3, stored_share(3, like))

    for of_one in (third, jax.jit(third)):
        np.testing.assert_allclose(of_one(totals, like), want, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(of_one)(totals, like), want, rtol=1e-6)
        by_one = jax.vmap(of_one, (0, None))(totals, like[0])
        np.testing.assert_allclose(by_one, want, rtol=1e-6)
        along = jax.jvp(of_one, (totals, like), (totals, like))[1]
        np.testing.assert_allclose(along, want, rtol=1e-6)
        pull = jax.vjp(of_one, totals, like)[1]
        np.testing.assert_allclose(pull(totals), (want, jnp.zeros_like(like)), rtol=1e-6)
    of = jax.ShapeDtypeStruct((3,), dtype)
    texts = [
        export.export(jax.jit(third), platforms=[p])(of, of).mlir_module() for p in ("cpu", "tpu")
    ]
    assert ["stablehlo.compare" in text for text in texts] == [True, False]


@pytest.mark.parametrize(
    ("norm", "is_stored"), [("batch", True), ("group", True), ("layer", False)]
)
def test_rows_are_divided_by_a_number(norm: str, is_stored: bool) -> None:
    """A network has rows of one length, so storing their count would be a program more, not fewer."""
    x, parameter = jnp.ones(SHAPE), jnp.ones(8)
    assert ("norm_share" in str(jax.make_jaxpr(NORMS[norm])(x, parameter, parameter))) == is_stored


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # a GPU's functions are inlined
@pytest.mark.parametrize("norm", [*NORMS, "silu"])
def test_no_idle_operations(norm: str, platform: str) -> None:
    """No function that a norm calls has unused results, copies of operands, or two reshapes of x in a row.

    A compiler removes them, but lowering takes its time for each, in every norm of a network.
    """
    x, parameter = jnp.ones(SHAPE), jnp.ones(8)

    def step(x: Any, scale: Any, bias: Any, dy: Any) -> Any:
        y, pull = jax.vjp(NORMS.get(norm, SILU), x, scale, bias)
        return y, pull(dy)

    traced = jax.jit(step).trace(x, parameter, parameter, x)
    module: Any = traced.lower(lowering_platforms=(platform,)).compiler_ir()

    def size(value: Any) -> int:
        return math.prod(value.type.shape)

    called = [f for f in module.body if f.name.value != "main"]
    for op in (op.operation for f in called for op in f.regions[0].blocks[0]):
        assert not op.results or any(list(result.uses) for result in op.results), str(op)
        if op.name in ("stablehlo.reshape", "stablehlo.slice", "stablehlo.broadcast_in_dim"):
            (operand,), (result,) = op.operands, op.results
            assert operand.type != result.type, str(op)
            made_by = getattr(operand.owner, "name", "an argument of the function")
            assert {made_by, op.name} != {"stablehlo.reshape"} or size(result) < x.size, str(op)
    assert called
