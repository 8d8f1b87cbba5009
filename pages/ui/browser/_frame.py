"""What the frame of every page does in the browser: history, a landmark for the menu, announcements, notifications."""

from __future__ import annotations

from collections.abc import Sequence

from pages.ui.browser._mount import mount


def frame(spoken: str, ended: Sequence[tuple[int, str]] = ()) -> None:
    """Announce `spoken` to screen readers when it changes, and `ended` (a number of its own and a text each) to a user
    with another tab in front, if notifications are switched on.

    The page's own changes of its address replace the present entry of the history: a click on the menu is one entry.
    """
    mount("frame", key="browser-frame", data={"spoken": spoken, "ended": [list(one) for one in ended]})
