"""The environment of all tests (8 CPU devices, strict promotion), and the selection for `make test`."""

import gc
import os
from collections.abc import Iterator

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

from tests.selecting import selected

# In a numerical library, an implicit broadcast or promotion is a bug.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def users_promotion() -> Iterator[None]:
    """The promotion of dtypes and ranks that users have."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what this jax cannot do, and in `make test` all but the selection."""
    if jax.__version_info__ < (0, 10):
        for item in items:
            if item.get_closest_marker("jax_0_10"):
                item.add_marker(pytest.mark.skip(f"jax {jax.__version__} cannot do this"))
    if EVERYTHING:
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = {item for cases in tests.values() for item in selected(cases)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_collection_finish() -> None:
    """Spares the garbage collector all that was imported and collected."""
    gc.collect()
    gc.freeze()
