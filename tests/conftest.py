"""The environment of all tests (8 CPU devices, strict promotion), and the selection for `make test`."""

import os
from collections.abc import Iterator
from typing import Any

from tests.compiling import EVERYTHING, compiler_flags

# These must be set before JAX starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        compiler_flags(),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

from tests.selecting import covering, half_of, is_represented

# In a numerical library, an implicit broadcast or promotion is a bug.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def users_promotion() -> Iterator[None]:
    """The promotion of dtypes and ranks that users have."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In `make test`, deselects ``thorough`` tests and, where fewer cases stand for all, the others."""
    if jax.__version_info__ < (0, 10):
        for item in items:
            if item.get_closest_marker("jax_0_10"):
                item.add_marker(pytest.mark.skip(f"jax {jax.__version__} cannot do this"))
    if EVERYTHING:
        return
    kept = [
        item
        for item in items
        if not item.get_closest_marker("thorough") and not is_represented(item)
    ]
    for mark, some_of in (("sampled", covering), ("halved", half_of)):
        tests: dict[str, list[Any]] = {}
        for item in kept:
            if item.get_closest_marker(mark):
                tests.setdefault(item.nodeid.split("[")[0], []).append(item)
        chosen = {item for cases in tests.values() for item in some_of(cases)}
        kept = [item for item in kept if not item.get_closest_marker(mark) or item in chosen]
    config.hook.pytest_deselected(items=list(set(items).difference(kept)))
    items[:] = kept
