"""The data page: quality, uploads."""
