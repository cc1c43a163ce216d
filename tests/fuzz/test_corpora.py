"""Every input that was ever kept, through its target again: seeds, and what fuzzing has found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import CORPORA
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept(name: str) -> None:
    kept = sorted((CORPORA / name).iterdir())
    assert kept, "a target without a corpus begins from nothing"
    for path in kept:
        try:
            TARGETS[name].run(path.read_bytes())
        except BaseException as error:
            error.add_note(
                str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
            )
            raise


def test_no_corpus_is_nobodys() -> None:
    assert {path.name for path in CORPORA.iterdir()} == set(TARGETS)
