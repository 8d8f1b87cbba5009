"""Shared charts."""
