"""The reply of the sandbox for a file that is not accepted."""

from __future__ import annotations


class Refusal(Exception):
    """A file that is not accepted: what is wrong, what was found, what to do."""

    def __init__(self, wrong: str, given: object = "", do: str = "give another file") -> None:
        super().__init__(wrong)
        self.parts = [wrong, str(given)[:300], do]
