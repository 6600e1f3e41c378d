"""Tools around norms: trees of variables in, trees of variables out; for Flax's own layers as well."""

from ._parity import Parity as Parity, assert_parity as assert_parity
from ._recalibrate import recalibrate as recalibrate
from ._replicas import pool_replicas as pool_replicas
