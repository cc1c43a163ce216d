"""The encodings of what is stored and sent: bytes in, values out. Pure: no I/O, no clock, no store.

Hostile bytes give typed errors (`CorruptBlob`, `FormatError`, …), never an allocation or a recursion that
they chose.
"""
