"""Run folders: the store, what is written into one and read from it, imported models, uploads."""
