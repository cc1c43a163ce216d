"""The log backend: a local directory of append-only segments."""
