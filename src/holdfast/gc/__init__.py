"""Collection: what nothing keeps goes, what anything keeps stays, and each answer can be explained.

`cycle` does it, `marks` follows what is kept, `roots` says who keeps it, `explain` looks ahead and back, `collector`
is what a store uses, `maintenance` does it in the background.
"""
