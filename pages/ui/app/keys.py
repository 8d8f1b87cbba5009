"""The session's keys, besides those that a widget has for itself: one line each, so that no two features share one.

A widget's own key is written where it is drawn; one whose value is in the address is the page's own (`url_state.own`).
"""

from __future__ import annotations

from typing import Final

PAGE: Final = "opened-page"
"""The page on screen: fragments rerun without the frame, and read it there."""
DATA: Final = "data"
"""The dataset in hand, which goes along from page to page."""
READING: Final = "reading"
"""How the dataset in hand is read: columns and levels."""
READ_SOURCE: Final = "read-source"
"""The dataset that these were entered for."""
UPLOAD_ROUND: Final = "upload-round"
UPLOAD_FAILED: Final = "upload-failed"
MORE_TEACHERS: Final = "more-teachers"
"""Further teachers: filled from a run by the page, drawn by the panel."""
TEACHER_FOR: Final = "teacher-for"
"""The fingerprint of the data that the teacher was offered for."""
KNOWN_RUN: Final = "known-run"
"""(spec as text, what the backend answered about its run)."""
RUNS_OPEN: Final = "runs-open"
"""The run that was ticked in the table."""
RUNS_OPENED: Final = "runs-opened"
"""How often: a new table forgets the tick."""
ROWS_OF: Final = "rows-of"
"""The fingerprint of the data that the images of Augment are from."""
ROWS_SKIP: Final = "rows-skip"
ROWS_CLASS_SEEN: Final = "rows-class-seen"
SAID_TO: Final = "said-to"
RISK_WANTED: Final = "risk-wanted"
QUALITY_AT: Final = "quality-at"
QUALITY_FAILED: Final = "quality-failed"
QUALITY_FOUND: Final = "quality-found"
QUALITY_WANTED: Final = "quality-wanted"
BUILT: Final = "contenders-built"
"""Optimizers that the user built, as plain values."""
REPORT_FILES: Final = "report-files"
BROWSER_TOLD: Final = "browser-told"
"""The last result of the check in the browser that the backend was given."""
