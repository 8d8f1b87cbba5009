"""What the jail answers instead of facts."""

from __future__ import annotations


class Refusal(Exception):
    """What is wrong, what was found, what to do."""

    def __init__(self, wrong: str, given: object = "", do: str = "give another file") -> None:
        super().__init__(wrong)
        self.parts = [wrong, str(given)[:300], do]
