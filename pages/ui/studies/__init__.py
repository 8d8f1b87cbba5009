"""Shared parts of the study pages."""
