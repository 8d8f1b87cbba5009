"""The search for the smallest model within limits: its form, and the view of a search."""
