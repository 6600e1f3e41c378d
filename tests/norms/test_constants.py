"""Documented constants have no derivative, and documented invariants hold."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests import oracle, reference
from tests.calls import INPUTS, STATS, X, arguments
from tests.cases import draw
from tests.oracle import assert_close, gradient, wide


def cotangent(shape: tuple[int, ...]) -> Any:
    """A random cotangent."""
    return draw(np.random.default_rng(5), shape, "float32")


# --- power iteration -----------------------------------------------------------------------------


def pulled(f: Any, *at: Any) -> Any:
    """The gradients of the first result of ``f`` for a random cotangent, compiled."""

    @jax.jit
    def gradients(*at: Any) -> Any:
        y, pull = jax.vjp(lambda *at: f(*at)[0], *at)
        return pull(jnp.asarray(cotangent(y.shape)))

    return gradients(*at)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_spectral_norm_does_not_differentiate_its_iteration(n_steps: int) -> None:
    """The gradient is that of W / σ with σ = v W uᵀ at constant v and u; the state gets none."""
    kernel, state = INPUTS["kernel"], INPUTS["state"]
    dkernel, dstate = pulled(lambda w, s: jn.spectral_norm(w, s, n_steps=n_steps), kernel, state)
    v, u, _ = reference.singular_vectors(kernel, state.u, n_steps)

    def held(w: Any) -> Any:
        sigma = (v @ w.reshape(-1, w.shape[-1]) @ u.T).item()
        return (cotangent(w.shape) * w / sigma).sum()

    check_iteration(
        dkernel, held, lambda w: reference.spectral_norm(w, state, n_steps=n_steps), kernel
    )
    assert not any(leaf.any() for leaf in dstate)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_conv_spectral_norm_does_not_differentiate_its_iteration(n_steps: int) -> None:
    """The gradient is that of W / σ with σ = ⟨u, conv(v)⟩ at constant v and u; the image gets none."""
    given = arguments("conv_spectral_norm")
    kernel, image = given["kernel"], given["image"]
    dkernel, dimage = pulled(
        lambda w, v: jn.conv_spectral_norm(w, v, n_steps=n_steps), kernel, image
    )
    u, v = reference.singular_images(kernel, image, n_steps=n_steps)

    def held(w: Any) -> Any:
        return (cotangent(w.shape) * w / (u * reference.conv(v, w)).sum()).sum()

    check_iteration(
        dkernel, held, lambda w: reference.conv_spectral_norm(w, image, n_steps=n_steps), kernel
    )
    assert not dimage.any()


def check_iteration(got: Any, held: Any, through: Any, kernel: Any) -> None:
    """Checks that ``got`` is the gradient with the iteration held constant, not the full gradient."""
    (want,) = gradient(held, [kernel])
    (of_all,) = gradient(lambda w: (cotangent(w.shape) * through(w)[0]).sum(), [kernel])
    assert_close(got, want, 1e-4)
    assert np.abs(of_all - want).max() > 1e-2 * np.abs(want).max()  # the two differ


# --- batch renorm --------------------------------------------------------------------------------


def test_batch_renorm_does_not_differentiate_r_and_d() -> None:
    """Clipped or not, r and d are constants, and the running statistics get no gradient."""
    options: Any = {"rmax": 1.5, "dmax": 0.4, "epsilon": 0.1}
    dx, dstats = pulled(lambda x, stats: jn.batch_renorm(x, stats, **options), X, STATS)

    def known(x: Any) -> Any:
        m = oracle.moments(x, (0, 1, 2))
        old_mean, old_std = wide(STATS.mean), np.sqrt(wide(STATS.var) + 0.1)
        return m.mean, np.sqrt(m.var + 0.1), old_mean, old_std

    mean, std, old_mean, old_std = known(wide(X))
    r, d = std / old_std, (mean - old_mean) / old_std
    clipped = np.clip(r, 1 / 1.5, 1.5), np.clip(d, -0.4, 0.4)
    for free, limited in zip((r, d), clipped, strict=True):
        assert (free == limited).any() and (free != limited).any()  # some clipped, some not

    def held(x: Any) -> Any:
        mean, std, *_ = known(x)
        return (cotangent(x.shape) * ((x - mean) / std * clipped[0] + clipped[1])).sum()

    assert_close(dx, gradient(held, [X])[0], 1e-4)
    assert not dstats.mean.any() and not dstats.var.any()


# --- domains -------------------------------------------------------------------------------------

OF_DOMAINS = jn.RunningStats(
    jnp.arange(6.0).reshape(3, 2) + 1, jnp.arange(6.0).reshape(3, 2) + 10, jnp.full((3, 2), 4)
)
UPDATED = jn.RunningStats(jnp.array([-1.0, -2.0]), jnp.array([0.5, 0.6]), jnp.array([5, 5]))


@pytest.mark.parametrize("domain", [-1, -2, -3, -4, 3, 100])
def test_a_traced_domain_out_of_range(domain: int) -> None:
    """A traced index out of range reads NaN and writes nothing; negative indices do not wrap around."""

    def both(domain: Any) -> Any:
        return (
            jn.stats_of_domain(OF_DOMAINS, domain),
            jn.with_stats_of_domain(OF_DOMAINS, domain, UPDATED),
        )

    read, written = jax.jit(both)(jnp.int32(domain))
    assert jnp.isnan(read.mean).all() and jnp.isnan(read.var).all()
    chex.assert_trees_all_equal(written, OF_DOMAINS)


KNOWN = [-1, 3, np.int64(-1), np.array(3), jnp.int32(3)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("domain", KNOWN, ids=lambda domain: f"{type(domain).__name__}({domain})")
def test_a_known_domain_out_of_range(domain: Any, compiled: bool) -> None:
    """An index whose value is known raises a ValueError if it is out of range, whatever its type."""
    wrap = jax.jit if compiled else lambda f: f
    with pytest.raises(ValueError, match="domain must lie in"):
        wrap(lambda: jn.stats_of_domain(OF_DOMAINS, domain))()
    with pytest.raises(ValueError, match="domain must lie in"):
        wrap(lambda: jn.with_stats_of_domain(OF_DOMAINS, domain, UPDATED))()


@pytest.mark.parametrize("domain", [0, 1, 2])
def test_a_domain_is_one_row(domain: int) -> None:
    """Static and traced indices read and write a single row; the other rows do not change."""
    read = jax.tree.map(lambda leaf: leaf[domain], OF_DOMAINS)
    written = jax.tree.map(lambda leaf, new: leaf.at[domain].set(new), OF_DOMAINS, UPDATED)
    for index in (domain, jnp.int32(domain)):
        chex.assert_trees_all_equal(jn.stats_of_domain(OF_DOMAINS, index), read)
        chex.assert_trees_all_equal(jn.with_stats_of_domain(OF_DOMAINS, index, UPDATED), written)
