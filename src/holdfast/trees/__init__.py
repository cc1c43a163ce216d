"""Directories in and out: `put_tree` reads one into a collection, `export_tree` writes one back.

Both know nothing of the store: they are given the few calls that they need (`TreeSink`, and callables).

    tree = put_tree("src", sink, exclude=["*.o", "build/"])     # tree.collection, tree.extras, tree.report
    export_tree("out", entries, extras, read)                   # entries() gives (name, hash) in order
"""

from holdfast.trees.exclude import Excludes
from holdfast.trees.export import export_tree
from holdfast.trees.names import split_name
from holdfast.trees.put import StoredTree, TreeSink, put_tree

__all__ = ["Excludes", "StoredTree", "TreeSink", "export_tree", "put_tree", "split_name"]
