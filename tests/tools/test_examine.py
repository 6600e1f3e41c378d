"""`examine` reports the right numbers, and its advice names exactly the layers with a problem."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests import oracle
from tests.tools.models import (
    IMAGES,
    KEY,
    MLP,
    NnxMLP,
    Subject,
    assert_same,
    linen,
    nnx_model,
    sharded,
    small_cnn,
)

X = np.random.default_rng(4).normal(1, 2, (512, 5)).astype(np.float32)
SEEN, NEW = X[:256], X[256:]


def examined(subject: Subject, batch: Any = None, **options: Any) -> tools.Examination:
    """The examination of the subject."""
    options = {"run": subject.evaluate, **options}
    batch = subject.x if batch is None else batch
    return tools.examine(subject.model, batch, variables=subject.variables, **options)


@cache
def healthy(make: Callable[[], Subject]) -> Subject:
    """The subject with statistics of its input."""
    subject = make()
    return subject.like(
        tools.recalibrate(
            subject.model, [subject.x], variables=subject.variables, run=subject.evaluate
        )
    )


def mlp() -> Subject:
    """A model with two norms."""
    return linen(MLP(), SEEN)


def changed(subject: Subject, path: str, f: Callable[[Any], Any]) -> Subject:
    """The subject with another array at ``path``."""

    def at(keys: Any, leaf: Any) -> Any:
        return f(leaf) if "/".join(key.key for key in keys) == path else leaf

    return subject.like(jax.tree_util.tree_map_with_path(at, subject.variables))


def test_numbers() -> None:
    """Each number matches its formula in double precision, and the model is not changed."""
    subject = mlp()
    before = subject.arrays
    found = examined(subject, NEW)
    dense = subject.variables["params"]["Dense_0"]
    h = oracle.wide(NEW) @ oracle.wide(dense["kernel"]) + oracle.wide(dense["bias"])
    mean, var = (oracle.wide(subject.stats[f"batch_stats/first/{n}"]) for n in ("mean", "var"))
    b, r, shift = h.var(0) + 1e-5, var + 1e-5, np.abs(h.mean(0) - mean)
    health = found.layers["first"]
    np.testing.assert_allclose(health.z, (shift / np.sqrt(r)).max(), rtol=1e-5)
    kl = (np.log(r / b) + (b + shift**2) / r - 1) / 2
    np.testing.assert_allclose(health.kl, kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(health.var_ratio, np.median(b / r), rtol=1e-5)
    assert (health.channels, health.values, health.tiny, health.dead) == (4, 256, 0, 0)
    np.testing.assert_allclose(found.batch["first"].mean, h.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(
        found.running["first"].var, subject.stats["batch_stats/first/var"]
    )
    evaluation, training = (oracle.wide(subject.output(NEW, train=t)) for t in (False, True))
    change = np.linalg.norm(evaluation - training) / np.linalg.norm(training)
    np.testing.assert_allclose(found.output_change, change, rtol=1e-4)
    for path, array in before.items():
        np.testing.assert_array_equal(subject.arrays[path], array)


def test_many_devices() -> None:
    """A sharded batch gives the same results."""
    subject = nnx_model(NnxMLP(jnx.BatchNorm), SEEN)
    whole, spread = examined(subject), examined(subject, sharded(SEEN))
    for path, health in whole.layers.items():
        np.testing.assert_allclose(health, spread.layers[path], rtol=1e-4, atol=1e-5)
    assert list(whole.layers) == ["first", "second"]


def conv() -> Subject:
    """A model for images."""
    return linen(small_cnn(), np.concatenate([IMAGES] * 4))


HEALTHY = {
    "MLP": mlp,
    "CNN": conv,
    "Flax's": lambda: linen(nn.BatchNorm(), SEEN),
    "NNX": lambda: nnx_model(NnxMLP(nnx.BatchNorm), SEEN),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_advice_for_the_healthy(name: str) -> None:
    """Healthy models get no advice, also for other data of the same kind, or if they are frozen."""
    subject = healthy(HEALTHY[name])
    batch = subject.x if name == "CNN" else NEW
    found = examined(subject, batch)
    assert found.advice() == {}
    assert "look" not in str(found) and "fine" in str(found)
    assert found.output_change < 0.2


def test_a_frozen_model() -> None:
    """A frozen model gives the same results as the original one."""
    subject = healthy(mlp)
    frozen = subject.like(tools.freeze(subject.model, variables=subject.variables))
    assert examined(frozen).layers == examined(subject).layers
    assert_same(frozen.step()[1], subject)


SICK: dict[str, tuple[Callable[[], Subject], Any, dict[str, str]]] = {
    "never updated": (
        lambda: mlp().like(MLP().init(KEY, SEEN, True)),
        SEEN,
        {"first": "mutable=", "second": "mutable="},
    ),
    "statistics of NaN": (
        lambda: changed(healthy(mlp), "batch_stats/second/var", lambda v: v.at[1].set(jnp.nan)),
        SEEN,
        {"second": "tools.keep_finite"},
    ),
    "scale of NaN": (
        lambda: changed(healthy(mlp), "params/second/scale", lambda v: v.at[1].set(jnp.nan)),
        SEEN,
        {"second": "tools.keep_finite"},
    ),
    "a NaN in the batch": (
        lambda: healthy(mlp),
        np.where(SEEN > 6, np.nan, SEEN),
        {"first": "look at the batch", "second": "look at the batch"},
    ),
    "a batch of 4": (
        lambda: healthy(mlp),
        SEEN[:4],
        {"first": "Only 4 values", "second": "Only 4 values"},
    ),
    "a dead channel": (
        lambda: healthy(
            lambda: changed(mlp(), "params/Dense_0/kernel", lambda k: k.at[:, 2].set(0.0))
        ),
        SEEN,
        {"first": "1 of 4 channels are dead", "second": "1 of 4 channels are dead"},
    ),
    "a scale of 0": (
        lambda: changed(healthy(mlp), "params/second/scale", lambda s: s.at[0].set(0.0)),
        SEEN,
        {"second": "1 of 4 channels are dead"},
    ),
    "tiny weights": (
        lambda: healthy(lambda: changed(mlp(), "params/Dense_0/kernel", lambda k: k * 1e-4)),
        SEEN,
        {"first": "4 of 4 channels have a running variance below epsilon"},
    ),
    "other data": (
        lambda: healthy(mlp),
        3 * SEEN + 4,
        {"first": "far from the batch statistics"},
    ),
}


@pytest.mark.parametrize("name", SICK)
def test_advice_names_what_is_broken(name: str) -> None:
    """The advice is at the right layers, and the table marks these."""
    make, batch, expected = SICK[name]
    found = examined(make(), batch)
    advice = found.advice()
    assert advice.keys() == expected.keys()
    for path, words in expected.items():
        assert words in advice[path]
    lines = str(found).splitlines()
    marked = {line.split()[0] for line in lines if line.endswith("look")}
    assert marked == expected.keys()
    words_shown = " ".join(str(found).split())
    assert all(text in words_shown for text in advice.values())


def test_masks_axes_and_half_precision() -> None:
    """Masked elements are not read, and the number of values is taken from the channel with the fewest."""
    x = np.random.default_rng(0).normal(300, 1, (6, 3, 40)).astype(jnp.bfloat16)
    x[0] = np.nan
    mask = np.arange(6)[:, None, None] > 0
    subject = linen(jnl.BatchNorm(axis=1), x)
    found = examined(subject, run=lambda m, x: m(x, use_running_average=True, mask=mask))
    wide = oracle.wide(x[1:])
    np.testing.assert_allclose(found.batch[""].mean, wide.mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.batch[""].var, wide.var((0, 2)), rtol=1e-4)
    assert found.layers[""].values == 200


def test_where() -> None:
    """Other layers run in evaluation."""
    found = examined(mlp(), where="sec*")
    assert list(found.layers) == ["second"]
    with pytest.raises(ValueError, match="the model has: first, second"):
        examined(mlp(), where="sce*")


def test_one_example() -> None:
    """With a training output of only the bias, the relative change of the output is infinite."""
    model = jnx.BatchNorm(5, use_bias=False, rngs=nnx.Rngs(0))
    found = tools.examine(model, SEEN[:1])
    assert found.output_change == np.inf
    assert "Only 1 values" not in found.advice()[""]  # the advice for a new layer comes first
    assert "inf" in str(found)


def test_table_and_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a line for each layer, and the figure a row for the worst ones."""
    found = examined(mlp(), NEW)
    print(found)
    table = capsys.readouterr().out
    assert table.splitlines()[0].split()[:2] == ["batch", "norm"]
    assert f"changes by {found.output_change:.1%}" in table
    assert len(table.splitlines()[0]) <= 110
    figure = found.figure(most=1)
    worst = max(found.layers, key=lambda path: found.layers[path].kl)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [worst, ""]
    figure.canvas.draw()


def test_the_result_is_a_tree() -> None:
    """The result contains numbers that can be logged or averaged."""
    found = examined(mlp())
    doubled = jax.tree.map(lambda leaf: 2 * leaf, found.layers)
    assert doubled["first"].z == 2 * found.layers["first"].z
    assert all(isinstance(v, bool | int | float) for v in found.layers["first"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tools.examine(MLP(), SEEN), "variables must be those of the Linen module"),
        (
            lambda: examined(Subject(MLP(), {"params": mlp().variables["params"]}, SEEN)),
            "no mean and var for 'first'",
        ),
        (
            lambda: tools.examine(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), SEEN),
            "a model that calls none",
        ),
        (
            lambda: examined(changed(mlp(), "batch_stats/first/mean", lambda m: m[:2])),
            r"a mean of shape \(2,\) for features of shape \(4,\) at 'first'",
        ),
        (lambda: tools.examine(cast(Any, partial(MLP().apply)), SEEN), "got partial"),
    ],
    ids=["no variables", "no statistics", "no norm", "other shapes", "apply"],
)
def test_what_cannot_be_examined(call: Callable[[], Any], message: str) -> None:
    """The error for a model that cannot be examined says what was given."""
    with pytest.raises(ValueError, match=message):
        call()


def test_text_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the text is the same; rich would display it instead."""
    found = examined(mlp())
    text = str(found)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(found) == text and "mean KL" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_the_change_of_outputs_of_any_dtype(dtype: str) -> None:
    """Complex outputs count as real ones do; integers and booleans do not count."""
    subject = healthy(mlp)

    def output(model: Any, x: Any) -> Any:
        y = subject.evaluate(model, x).astype(dtype)
        y = y * (3 + 4j) if dtype == "complex64" else y
        return {"y": y, "class": y.real.argmax(-1), "positive": y.real > 0}

    found, want = (examined(subject, 3 * NEW, run=run) for run in (output, subject.evaluate))
    assert want.output_change > 0.1
    np.testing.assert_allclose(found.output_change, want.output_change, rtol=1e-2)
