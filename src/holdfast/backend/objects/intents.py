"""Intents: what a tag is to name next stands in its object first, behind the state that counts.

Two objects cannot be looked at and changed in one step. So a state that takes the place of another one is an intent at
first: nobody is told of it, and it is a root like the other. Then comes the look for the blob; only then it takes the
other's place. Whoever dies in between has changed nothing, and what it intended goes with the tag's next state
(models/tags.pml).
"""

from __future__ import annotations

from typing import Final

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.names import Named, read_named
from holdfast.wire.bundle import Document, encode_bundle
from holdfast.wire.record import Kind

TRIES: Final = 100
"""How often others may put intents of theirs beside one, before it is given up."""


def intent_of(document: Document, before: Named) -> list[Document]:
    """Give what an object holds when a tag document is intended: that of others stays."""
    return [*before.documents, (Kind.INTENDED_TAG, document[1])]


def confirm(bucket: Bucket, now: Named) -> Named | None:
    """Make the intent so that stands last in `now`, the object as it was written. None: something else counts by now.

    Others' intents go: who has one finds that another state counts, and begins anew.
    """
    counting, intent = now.documents[0], now.documents[-1]
    documents = [(Kind.TAG, intent[1])]
    data = encode_bundle(documents, now.key)
    for _ in range(TRIES):
        made = bucket.replace(now.key, data, now.e_tag)
        if made is not None:
            return Named(now.key, documents, made.e_tag or "")
        found = read_named(bucket, now.key)
        if found is not None and found.documents[:1] == documents:  # it was done, and the reply was lost
            return found
        if found is None or found.documents[:1] != [counting] or intent not in found.documents:
            return None
        now = found
    return None


def withdraw(bucket: Bucket, intended: Named) -> None:
    """Take the intent back that stands last in `intended`, if it is still there."""
    intent = intended.documents[-1]
    for _ in range(TRIES):
        now = read_named(bucket, intended.key)
        if now is None or intent not in now.documents:
            return
        documents = list(now.documents)
        documents.remove(intent)
        if bucket.replace(now.key, encode_bundle(documents, now.key), now.e_tag) is not None:
            return
