"""Every function with `axis_name`: devices with different data and masks act as one, or one per group.

The functions come from the signatures: one without a row in `SPLIT` fails by name. All results and a
derivative are compared with the reference for the whole data.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.calls import arguments, expected, functions, parameters
from tests.cases import draw
from tests.oracle import assert_close, slope

DEVICES = 4
EXAMPLES, POSITIONS, CHANNELS = 0, 1, -1
SPLIT = {
    "batch_norm": EXAMPLES,
    "batch_norm_adapted": EXAMPLES,
    "batch_renorm": EXAMPLES,
    "evo_norm_b0": EXAMPLES,
    "evo_norm_b1": EXAMPLES,
    "evo_norm_b2": EXAMPLES,
    "evo_norm_s0": POSITIONS,
    "evo_norm_s1": POSITIONS,
    "evo_norm_s2": POSITIONS,
    "filter_response_norm": POSITIONS,
    "group_norm": POSITIONS,
    "instance_norm": POSITIONS,
    "iterative_whitening": EXAMPLES,
    "l2_normalize": CHANNELS,
    "layer_norm": CHANNELS,
    "mean_only_batch_norm": EXAMPLES,
    "moments": EXAMPLES,
    "pixel_norm": CHANNELS,
    "rms_norm": CHANNELS,
    "scale_norm": CHANNELS,
    "switchable_norm": EXAMPLES,
    "tracked_instance_norm": POSITIONS,
}
"""The axis that is split over devices."""
ELSEWHERE = {"input_norm": "tests/norms/test_input_norm.py"}  # its statistics are constants
OPTIONS: dict[str, dict[str, Any]] = {
    # Far from the batch: clipped r and d are constants for finite differences, too.
    "batch_renorm": {
        "rmax": 1.1,
        "dmax": 0.1,
        "stats": jn.RunningStats(jnp.full(4, -3.0), jnp.full(4, 0.1)),
    },
}
WAYS: dict[str, list[list[int]]] = {
    "all": [[0, 1, 2, 3]],
    "groups": [[0, 2], [3, 1]],
}
ALONE = [[0], [1], [2], [3]]


def inputs(name: str) -> tuple[Any, np.ndarray]:
    """Inputs and masks of devices: each has larger values and fewer unmasked elements; the last has none."""
    shape = (DEVICES, 2, 3, 2, 4)
    x = draw(np.random.default_rng(0), shape, "float32", 0.5, 1.5)
    x += np.arange(DEVICES, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    place = np.indices(shape[1:]).sum(0)
    mask = np.stack([place >= 0, place % 3 != 0, place % 2 == 0, place < 0])
    return x, mask[..., :1] if name == "iterative_whitening" else mask


def options(name: str) -> dict[str, Any]:
    """All options except x and mask; parameters of channels only if channels are not split."""
    given = arguments(name) | OPTIONS.get(name, {})
    if "momentum" in parameters(name):
        given["momentum"] = 0.5
    if SPLIT[name] == CHANNELS:
        given = {k: v for k, v in given.items() if np.ndim(v) == 0}
    return {k: v for k, v in given.items() if k not in ("x", "mask")}


def ways(name: str) -> dict[str, list[list[int]]]:
    """All devices, and groups of devices if the function accepts them."""
    return WAYS if "axis_index_groups" in parameters(name) else {"all": WAYS["all"]}


def in_pieces(name: str, x: Any, mask: Any, groups: list[list[int]]) -> list[np.ndarray]:
    """The reference for each group's whole data, split into each device's results, devices first."""
    axis, found = SPLIT[name], {}
    for group in groups:
        whole, counted = (np.concatenate(list(a[group]), axis) for a in (x, mask))
        leaves = expected(name, options(name) | {"x": whole, "mask": counted})
        for i, device in enumerate(group):
            found[device] = [
                np.split(leaf, len(group), axis)[i] if leaf.shape == whole.shape else leaf
                for leaf in leaves
            ]
    return [np.stack(of) for of in zip(*(found[i] for i in range(DEVICES)), strict=True)]


def cotangents(leaves: Any) -> list[Any]:
    """Random cotangents, one for each leaf."""
    rng = np.random.default_rng(1)
    return [draw(rng, leaf.shape, "float32") for leaf in leaves]


@pytest.mark.parametrize("name", sorted({*functions("axis_name"), *SPLIT} - {*ELSEWHERE}))
def test_devices_are_one(name: str) -> None:
    """All devices act as one, and groups do not affect each other."""
    assert name in SPLIT, f"{name} has axis_name: say in SPLIT of which axis devices have a part"
    x, mask = inputs(name)

    def shared(groups: list[list[int]]) -> dict[str, Any]:
        return {} if len(groups) == 1 else {"axis_index_groups": groups}

    @jax.jit
    def run(x: Any, mask: Any) -> Any:
        found = {}
        for way, groups in ways(name).items():

            def device(x: Any, mask: Any, groups: Any = groups) -> Any:
                given = options(name) | shared(groups) | {"axis_name": "devices"}
                return jax.tree.leaves(getattr(jn, name)(x=x, mask=mask, **given))

            devices = jax.vmap(device, axis_name="devices")
            leaves, pull = jax.vjp(lambda x, devices=devices: devices(x, mask), x)
            found[way] = leaves, *pull(cotangents(leaves))
        return found

    alone = in_pieces(name, x, mask, ALONE)
    direction = draw(np.random.default_rng(2), x.shape, "float32")
    for way, (leaves, dx) in run(x, mask).items():
        groups = WAYS[way]
        wanted = in_pieces(name, x, mask, groups)
        for got, want in zip(leaves, wanted, strict=True):
            assert_close(got, want)
        assert np.abs(wanted[0] - alone[0]).max() > 0.1  # pooling makes a visible difference

        def total(x: Any, groups: Any = groups) -> Any:
            leaves = in_pieces(name, x, mask, groups)
            return sum((c * leaf).sum() for c, leaf in zip(cotangents(leaves), leaves, strict=True))

        along = slope(total, [x], [direction])
        size = float(np.linalg.norm(dx))
        assert size > 0.1
        np.testing.assert_allclose((np.float64(dx) * direction).sum(), along, atol=1e-3 * size)
