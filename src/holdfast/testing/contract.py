"""One suite for every backend: what the public API of a store promises, with hostile input.

A backend subclasses `StoreContract` in a test module, gives it a fixture `make_store` (and says with the
class attributes what it is), and its tests run. `corrupt` is the side door through which the suite damages
stored bytes.

    class TestMine(StoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda **options: holdfast.open(f"mine://{tmp_path}", create=True, **options)
"""

from __future__ import annotations

from holdfast.testing.contract_base import MakeStore, boundary_sizes, sample
from holdfast.testing.contract_care import CareContract
from holdfast.testing.contract_changing import ChangingContract
from holdfast.testing.contract_collecting import CollectingContract
from holdfast.testing.contract_compacting import CompactingContract
from holdfast.testing.contract_finding import FindingContract
from holdfast.testing.contract_partial import PartialContract
from holdfast.testing.contract_putting import PuttingContract
from holdfast.testing.contract_reading import ReadingContract
from holdfast.testing.contract_repair import RepairContract
from holdfast.testing.contract_streams import StreamsContract
from holdfast.testing.contract_tags import TagsContract
from holdfast.testing.contract_uploads import UploadsContract

__all__ = ["MakeStore", "StoreContract", "boundary_sizes", "sample"]


class StoreContract(
    PuttingContract,
    ReadingContract,
    ChangingContract,
    FindingContract,
    TagsContract,
    UploadsContract,
    CareContract,
    RepairContract,
    CompactingContract,
    PartialContract,
    StreamsContract,
    CollectingContract,
):
    """Subclass it, define `make_store` (and `reopen`, `corrupt`), and set what differs."""
