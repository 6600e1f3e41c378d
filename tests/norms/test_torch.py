"""PyTorch's modules in double precision: outputs, gradients and state, in training and evaluation."""

import inspect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.cases import draw
from tests.norms.torch_layers import WAYS, assert_close, evaluated, make, state_of, trained
from tests.norms.torch_rows import LAYERS, PEERS, PLACEMENT, Peer, Row

torch: Any = pytest.importorskip(
    "torch", minversion="2.13", reason="no PyTorch, or one without all of these arguments"
)
EVERY_ROW = [pytest.param(peer, row, id=row.name) for peer in LAYERS for row in peer.rows]


@pytest.mark.parametrize(("peer", "row"), EVERY_ROW)
def test_layer(peer: Peer, row: Row) -> None:
    """Outputs, gradients and statistics of every API match PyTorch over steps of training and evaluation."""
    rng = np.random.default_rng(0)
    layer = make(torch, row, rng)
    params, stats = state_of(layer)
    fields = peer.fields(row.arguments(torch))

    @jax.jit
    def step(params: Any, states: Any, x: Any, dy: Any) -> Any:
        results = {}
        for way, run in WAYS.items():

            def f(params: Any, x: Any, run: Any = run, state: Any = states[way]) -> Any:
                return run(peer.ours, fields, params, state, x, True)

            y, pull, new = jax.vjp(f, params, x, has_aux=True)
            y_eval, kept = run(peer.ours, fields, params, new, x, False)
            results[way] = (y, *pull(dy)), new, y_eval, kept
        return results

    with jax.enable_x64(True):
        states = dict.fromkeys(WAYS, stats)
        for i in range(3):
            x, dy = rng.normal(i, 2.0, row.shape), rng.normal(size=row.shape)
            theirs = trained(torch, layer, x, dy), state_of(layer)[1], evaluated(torch, layer, x)
            for way, (*ours, kept) in step(params, states, x, dy).items():
                assert_close(ours, [*theirs], f"{way}, step {i}")
                assert_close(kept, theirs[1], f"{way}, evaluation after step {i}")
                states[way] = ours[1]


@pytest.mark.parametrize(("peer", "row"), EVERY_ROW)
def test_fresh_layer(peer: Peer, row: Row) -> None:
    """A new layer has the same parameters and statistics as PyTorch's, with the same initial values."""
    fields = peer.fields(row.arguments(torch))
    params, stats = state_of(attrgetter(row.theirs)(torch)(**row.options))
    layer = getattr(jnx, peer.ours)(**fields, rngs=nnx.Rngs(0))
    ours = {str(path[-1]): v[...] for path, v in nnx.to_flat_state(nnx.state(layer))}
    assert sorted(ours) == sorted([*params, *stats])
    for name, value in {**params, **stats}.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    fields.pop("num_features", None)
    module = getattr(jnl, peer.ours)(**fields, parent=None)
    made = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, use_running_average=False),
        jax.ShapeDtypeStruct(row.shape, "float32"),
    )
    shapes = {name: leaf.shape for tree in made.values() for name, leaf in tree.items()}
    assert shapes == {name: value.shape for name, value in ours.items()}


HALF: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "batch": (
        lambda: torch.nn.BatchNorm1d(8),
        lambda x, **to: jn.batch_norm(x, jn.init_running_stats(8), **to)[0],
    ),
    "layer": (lambda: torch.nn.LayerNorm(8), partial(jn.layer_norm, epsilon=1e-5)),
    "group": (lambda: torch.nn.GroupNorm(2, 8), partial(jn.group_norm, num_groups=2, epsilon=1e-5)),
    "rms": (
        lambda: torch.nn.RMSNorm(8, elementwise_affine=False),
        partial(jn.rms_norm, epsilon=float(jnp.finfo("float32").eps)),
    ),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("norm", HALF)
def test_half_precision(norm: str, dtype: str) -> None:
    """Half-precision input with float32 parameters, PyTorch's mixed mode, agrees up to one rounding.

    The values are small enough for ε to matter: RMSNorm's ``eps=None`` is the float32 epsilon.
    """
    theirs, ours = HALF[norm]
    small = 1e-3 if norm == "rms" else 1.0
    x = draw(np.random.default_rng(0), (64, 8), "float32", 3 * small, 2 * small)
    half = torch.from_numpy(x).to(getattr(torch, dtype))
    exact = jnp.asarray(half.to(torch.float32).numpy(), dtype)
    want = theirs()(half).detach().to(torch.float32).numpy()
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.float32(ours(exact, dtype=dtype)), want, rtol=eps, atol=1e-3 * eps
    )


EVERY = [pytest.param(peer, name, id=name) for peer in PEERS for name in peer.theirs]


@pytest.mark.parametrize(("peer", "theirs"), EVERY)
def test_every_argument(peer: Peer, theirs: str) -> None:
    """The table has each argument of each constructor and tries each at a value other than its default."""
    parameters = inspect.signature(attrgetter(theirs)(torch)).parameters
    assert parameters.keys() - PLACEMENT == peer.becomes.keys()
    tried = [row.options for row in peer.rows if row.theirs == theirs]
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty and name not in (*PLACEMENT, "p"):
            assert any(row.get(name, parameter.default) != parameter.default for row in tried), name
