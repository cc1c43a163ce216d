"""What tests reach into a store for."""

from __future__ import annotations

from holdfast.log_core import LogCore
from holdfast.log_engine import LogEngine
from holdfast.object_core import ObjectCore
from holdfast.store import Store


def log_core(store: Store) -> LogCore:
    """Give the core of a store that lies on the log backend."""
    core = store._core
    assert isinstance(core, LogCore)
    return core


def log_engine(store: Store) -> LogEngine:
    """Give the engine of a store that lies on the log backend."""
    engine = store._engine
    assert isinstance(engine, LogEngine)
    return engine


def object_core(store: Store) -> ObjectCore:
    """Give the core of a store that lies in a bucket."""
    core = store._core
    assert isinstance(core, ObjectCore)
    return core
