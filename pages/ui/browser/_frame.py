"""What the frame of every page does in the browser: history, a landmark for the menu, announcements."""

from __future__ import annotations

from pages.ui.browser._mount import mount


def frame(spoken: str) -> None:
    """Announce `spoken` to screen readers when it changes.

    The page's own changes of its address replace the present entry of the history: a click on the menu is one entry.
    """
    mount("frame", key="browser-frame", data={"spoken": spoken})
