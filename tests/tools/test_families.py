"""Every tool on models of the families that people train: the table in the documentation."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.tools import timm_models as timm
from tests.tools.families import FAMILIES, Family

pytestmark = pytest.mark.usefixtures("users_promotion")

PAGE = Path(__file__).parents[2] / "docs" / "model-families.md"
SMALL = ["GAN: generator (NNX)"]


def named(names: list[str]) -> list[Any]:
    """All families, of which only ``names`` run in `make test`."""
    thorough = pytest.mark.thorough
    return [
        pytest.param(name, marks=[] if name in names else thorough, id=name) for name in FAMILIES
    ]


@cache
def table() -> dict[str, list[str]]:
    """The cells of the page: examine, fold and swap, by family."""
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line[:1] == "|"]
    return {cells[0].strip(): [cell.strip() for cell in cells[2:]] for cells in rows[2:]}


def run(train: bool) -> Callable[[Any, Any], Any]:
    """Calls a model in a mode."""
    return lambda model, x: model(x, train=train)


def given(family: Family) -> dict[str, Any]:
    """The option with the variables of a Linen model."""
    return {} if family.variables is None else {"variables": family.variables}


def outputs(model: Any, variables: Any, x: Any, *, train: bool) -> Any:
    """The output of a model, and its running statistics after it."""
    if variables is None:
        model = nnx.clone(model)
        y = nnx.jit(run(train))(model, x)
        return y, nnx.state(model, nnx.BatchStat)
    apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
    y, updated = apply(variables, x, train=train, mutable=("batch_stats",))
    return y, {**variables, **updated}.get("batch_stats", {})


def assert_close(a: Any, b: Any) -> None:
    """Checks that two arrays are equal but for rounding."""
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.abs(b).max()))


def test_page_lists_every_family() -> None:
    """No family is missing in the documentation."""
    assert list(table()) == list(FAMILIES)


@pytest.mark.parametrize("name", named(SMALL))
def test_family(name: str) -> None:
    """The tools support as many norms as the page says, and their results are right."""
    family = FAMILIES[name]()
    model, x, variables = family
    seen, folding, swapping = table()[name]
    if seen == "none":
        assert folding == swapping == "none"
        for tool in (tools.examine, tools.fold):
            with pytest.raises(ValueError, match="at least one norm with running statistics"):
                tool(model, x, run=run(False), **given(family))
        with pytest.raises(ValueError, match="at least one norm with running statistics"):
            tools.recalibrate(model, [x], run=run(False), **given(family))
        with pytest.raises(ValueError, match="at least one norm with running statistics"):
            tools.freeze(model, **given(family))
        with pytest.raises(ValueError, match="at least one batch norm"):
            tools.swap(model, "group", **given(family))
        return

    examination = tools.examine(model, x, run=run(True), **given(family))
    assert f"{len(examination.layers)} norms" == seen

    recalibrated: Any = tools.recalibrate(
        model, [x[:3], x[3:]], run=run(False), layer_by_layer=True, **given(family)
    )
    model, variables = (recalibrated, None) if variables is None else (model, recalibrated)
    family = Family(model, x, variables)
    evaluated, stats = outputs(model, variables, x, train=False)
    if not name.startswith("CrossQ"):  # its first steps have no correction in training
        assert_close(outputs(model, variables, x, train=True)[0], evaluated)

    frozen = tools.freeze(model, **given(family))
    y, same = outputs(frozen, variables, x, train=True)
    assert_close(y, evaluated)
    assert jax.tree.all(jax.tree.map(np.array_equal, stats, same))

    folded = tools.fold(model, x, run=run(False), partial=True, **given(family))
    assert f"{len(folded.pairs)} of {len(folded.pairs) + len(folded.refused)}" == folding
    y, _ = outputs(folded.model, folded.variables, x, train=False)
    assert_close(y, evaluated)
    assert_exports(folded, x, evaluated)

    if swapping == "refused":
        with pytest.raises(ValueError, match="keeps running statistics and computes something"):
            swapped_outputs(family)
    else:
        y, stats, norms = swapped_outputs(family)
        assert not stats and np.isfinite(y).all()
        assert f"{norms} norms" == swapping


def assert_exports(folded: tools.Folded, x: Any, expected: Any) -> None:
    """Checks that the folded model gives ``expected`` when exported for all platforms."""

    def apply(x: Any) -> Any:
        return outputs(folded.model, folded.variables, x, train=False)[0]

    exported = export.export(jax.jit(apply), platforms=("cpu", "cuda", "tpu"))(x)
    assert_close(export.deserialize(exported.serialize()).call(x), expected)


def swapped_outputs(family: Family) -> tuple[Any, Any, int]:
    """The output with group norm instead, the running statistics, and the number of group norms."""
    called = set()

    def count(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, jnl.GroupNorm):
            called.add(context.module.path)
        return next_call(*args, **kwargs)

    swapped: Any = tools.swap(family.model, "group", num_groups=2, **given(family))
    if family.variables is None:
        norms = [node for _, node in nnx.iter_graph(swapped) if isinstance(node, jnx.GroupNorm)]
        return *outputs(swapped, None, family.x, train=True), len(norms)
    with nn.intercept_methods(count):
        model, variables = swapped
        y, stats = outputs(model, variables, family.x, train=True)
    return y, stats, len(called)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["MobileNetV3, EfficientNet", "GAN: generator"])
def test_parity(name: str) -> None:
    """Synchronized batch norms give on eight devices what one device gives."""
    family = FAMILIES[name]()

    def f(variables: Any, x: Any, axis_name: str | None) -> Any:
        model, variables = tools.swap(
            family.model, "batch", variables=variables, axis_name=axis_name
        )
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    rows = tools.assert_parity(f, family.variables, family.x, tolerance=1e-3)
    assert len(rows) == 5


def test_replicas() -> None:
    """The pooled statistics of replicas that trained apart, in the first layer of a model."""
    model, x, variables = FAMILIES["Inception"]()
    held = {n: np.asarray(a, float) for n, a in variables["batch_stats"]["stem"]["bn"].items()}
    parts = x.reshape(4, 2, *x.shape[1:])

    def trained(x: Any) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    pooled = tools.pool_replicas(jax.jit(jax.vmap(trained))(parts), axis=0)
    assert jax.tree.structure(pooled) == jax.tree.structure(variables["batch_stats"])
    params = {"params": variables["params"]["stem"]["conv"]}
    inputs = [np.asarray(timm.conv(8, 3, 2).apply(params, part), float) for part in parts]
    means = [0.9 * held["mean"] + 0.1 * each.mean((0, 1, 2)) for each in inputs]
    variances = [0.9 * held["var"] + 0.1 * each.var((0, 1, 2), ddof=1) for each in inputs]
    found = pooled["stem"]["bn"]
    np.testing.assert_allclose(found["mean"], np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], np.mean(variances, 0) + np.var(means, 0), rtol=1e-5)
