"""Where the bytes live, one package or module for each kind of storage. It knows no tags and no SQL."""
