"""ONNX's conformance vectors: the functions here give the expected outputs."""

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: its test vectors are in it")
NODE = "onnx.backend.test.case.node"
Outputs = tuple[Any, ...]

RTOL, ATOL = 1e-4, 1e-6  # for values of order 1; ONNX's own runner uses 1e-3 and 1e-7


def batch_norm(a: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Outputs:
    """Also returns running statistics in training: momentum weighs the old value, and variance is biased."""
    stats, options = jn.RunningStats(mean, var), {"feature_axes": 1, "epsilon": a["epsilon"]}
    momentum = a["momentum"]  # may be given in evaluation, where it has no effect
    if not a["training_mode"]:
        return (jn.batch_norm_inference(x, stats, scale, bias, **options),)
    y, stats = jn.batch_norm(x, stats, scale, bias, momentum=momentum, **options)
    return y, stats.mean, stats.var


def layer_norm(a: Any, x: Any, scale: Any, bias: Any) -> Outputs:
    """Reduces all axes from ``axis`` on; also returns the mean and the reciprocal of the deviation."""
    axes = tuple(range(a["axis"] % x.ndim, x.ndim))
    y = jn.layer_norm(x, scale, bias, reduction_axes=axes, feature_axes=axes, epsilon=a["epsilon"])
    m = jn.moments(x, axes)
    return y, m.mean, (m.var + a["epsilon"]) ** -0.5


def rms_norm(a: Any, x: Any, scale: Any) -> Outputs:
    """Reduces all axes from ``axis`` on."""
    axes = tuple(range(a["axis"] % x.ndim, x.ndim))
    return (jn.rms_norm(x, scale, reduction_axes=axes, feature_axes=axes, epsilon=a["epsilon"]),)


def group_norm(a: Any, x: Any, scale: Any, bias: Any) -> Outputs:
    """Up to opset 20 there is one scale per group, from 21 on one per channel."""
    if a["opset"] < 21:
        scale, bias = (np.repeat(p, x.shape[1] // a["num_groups"]) for p in (scale, bias))
    options = {"num_groups": a["num_groups"], "epsilon": a["epsilon"]}
    return (jn.group_norm(x, scale, bias, feature_axes=1, **options),)


def instance_norm(a: Any, x: Any, scale: Any, bias: Any) -> Outputs:
    """Channels come first."""
    return (jn.instance_norm(x, scale, bias, feature_axes=1, epsilon=a["epsilon"]),)


def local_response_norm(a: Any, x: Any) -> Outputs:
    """ONNX's ``bias`` is k."""
    options = {"alpha": a["alpha"], "beta": a["beta"], "k": a["bias"]}
    return (jn.local_response_norm(x, size=a["size"], feature_axes=1, **options),)


def l2_normalize(a: Any, x: Any) -> Outputs:
    """Covers ``p=2``; a zero vector stays zero."""
    return (jn.l2_normalize(x, reduction_axes=a["axis"]),)


def mean_variance_normalization(a: Any, x: Any) -> Outputs:
    """Layer norm over any axes; ONNX's ε of 1e-9 outside the root is too small to matter."""
    return (jn.layer_norm(x, reduction_axes=tuple(a["axes"]), feature_axes=(), epsilon=0.0),)


# op: the file of its vectors, the function here that computes it, the least number of vectors
OPS: dict[str, tuple[str, Callable[..., Outputs], int]] = {
    "BatchNormalization": ("batch_normalization", batch_norm, 4),
    "LayerNormalization": ("layernormalization", layer_norm, 19),
    "RMSNormalization": ("rmsnormalization", rms_norm, 19),
    "GroupNormalization": ("groupnormalization", group_norm, 2),
    "InstanceNormalization": ("instance_normalization", instance_norm, 2),
    "LRN": ("lrn", local_response_norm, 2),
    "LpNormalization": ("lpnormalization", l2_normalize, 3),
    "MeanVarianceNormalization": ("meanvariancenormalization", mean_variance_normalization, 1),
}
# Attributes that need no argument here. Statistics are float32 or wider, as stash_type=1 requires.
UNREAD = {"stash_type": 1, "p": 2, "is_test": 1}


class Attributes(dict[str, Any]):
    """Attributes of a node, with the defaults of its opset; records which ones are read."""

    def __init__(self, node: Any, opset: int) -> None:
        schema = onnx.defs.get_schema(node.op_type, opset)
        defaults = (a.default_value for a in schema.attributes.values() if a.default_value.name)
        super().__init__(
            {a.name: onnx.helper.get_attribute_value(a) for a in (*defaults, *node.attribute)}
        )
        self.given, self.read = {a.name for a in node.attribute}, set[str]()
        self["opset"] = opset

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def vectors() -> list[Any]:
    """The test cases of the operators above: models of one node, with inputs and outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one case divides by zero on purpose
        for file, _, _ in OPS.values():
            importlib.import_module(f"{NODE}.{file}")
    cases = importlib.import_module(NODE)._NodeTestCases
    return [c for c in cases if "_expanded" not in c.name and c.model.graph.node[0].op_type in OPS]


def has_counterpart(case: Any) -> bool:
    """Whether the case has a counterpart here; the L1 norm of a vector does not."""
    (node,) = case.model.graph.node
    return Attributes(node, case.model.opset_import[0].version).get("p", 2) == 2


VECTORS = [case for case in vectors() if has_counterpart(case)]
CONVERTED = sorted(
    (Path(onnx.__file__).parent / "backend/test/data/pytorch-converted").glob("test_BatchNorm*")
)


def assert_same(model: Any, inputs: Any, outputs: Any) -> None:
    """Checks our results against the model's node, and that every given attribute is read."""
    (node,) = model.graph.node
    attributes = Attributes(node, model.opset_import[0].version)
    got = jax.jit(partial(OPS[node.op_type][1], attributes))(*inputs)
    assert len(got) == len(outputs)
    for ours, theirs in zip(got, outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=ATOL)
        assert ours.shape == theirs.shape
    for name in attributes.given - attributes.read:
        assert attributes[name] == UNREAD[name], f"{name} was ignored"


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case.name)
def test_vector(case: Any) -> None:
    """All outputs of a vector are correct."""
    for inputs, outputs in case.data_sets:
        assert_same(case.model, inputs, outputs)


@pytest.mark.parametrize("op", OPS)
def test_number_of_vectors(op: str) -> None:
    """No operator has lost its vectors, so the tests above cannot pass for lack of cases."""
    assert sum(c.model.graph.node[0].op_type == op for c in VECTORS) >= OPS[op][2]


@pytest.mark.parametrize("folder", CONVERTED, ids=lambda p: p.name)
def test_exported_from_pytorch(folder: Path) -> None:
    """A batch norm exported from PyTorch in evaluation mode gives PyTorch's outputs."""
    model = onnx.load(folder / "model.onnx")
    # The opset of that time uses is_test for what is now training_mode=0.
    model.opset_import[0].version = 15
    parameters = [onnx.numpy_helper.to_array(p) for p in model.graph.initializer]
    files = (folder / "test_data_set_0" / f"{name}_0.pb" for name in ("input", "output"))
    x, y = (onnx.numpy_helper.to_array(onnx.load_tensor(file)) for file in files)
    assert_same(model, [x, *parameters], [y])


def test_number_of_exported_models() -> None:
    """The exported models are present."""
    assert len(CONVERTED) >= 5


@pytest.mark.parametrize("opset", [18, 21])
def test_group_norm_of_an_opset(opset: int) -> None:
    """Scale and bias per group (opset 18) or per channel (21) match ONNX's own evaluator."""
    rng = np.random.default_rng(0)
    size = {18: 2, 21: 6}[opset]
    inputs = [rng.normal(size=s).astype(np.float32) for s in ((2, 6, 5), (size,), (size,))]
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)
    named = dict(zip(node.input, inputs, strict=True))
    graph = helper.make_graph(
        [node],
        "group_norm",
        [helper.make_tensor_value_info(n, floats, a.shape) for n, a in named.items()],
        [helper.make_tensor_value_info("y", floats, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
    assert_same(model, inputs, evaluator.run(None, named))


def test_a_wrong_answer_is_seen() -> None:
    """The comparison fails for a wrong output and for an attribute that nothing reads."""
    case = next(c for c in VECTORS if c.name == "test_batchnorm_epsilon")
    (inputs, outputs), *_ = case.data_sets
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(case.model, inputs, [1.001 * outputs[0]])
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("stash_type", 0))
    with pytest.raises(AssertionError, match="stash_type was ignored"):
        assert_same(model, inputs, outputs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stash_type(dtype: str) -> None:
    """As with ``stash_type=1``, statistics of half-precision inputs are computed in float32."""
    x = jnp.asarray(300 + np.random.default_rng(0).normal(size=(4, 512)), dtype)
    exact = np.float64(x)
    assert jn.moments(x, -1).mean.dtype == "float32"
    got = layer_norm({"axis": -1, "epsilon": 1e-5}, x, None, None)
    want = [exact.mean(-1, keepdims=True), (exact.var(-1, keepdims=True) + 1e-5) ** -0.5]
    for ours, theirs in zip(got[1:], want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
