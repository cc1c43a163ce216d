"""Looking after a store: verify, scrub, repair, health, figures. Damage is reported, not raised.

`verify` reads one thing, `scrub` everything at rest, piece by piece; what they find goes into quarantine, in the log.
`repair` brings it back from elsewhere, `framing` puts back what is derived from records, `compare` holds the catalog
against the segments, `health` says how a store is, `figures` how much is in it.
"""
