"""Optimizers compared fairly on the user's own student: tuned alike, raced on the same seeds, judged with intervals.

Runs of a study are ordinary runs, found by their digests, so whatever is extended never repeats what is done. Reading a
study imports no torch: the dashboard reads through this package.
"""

from __future__ import annotations

from smallalign_core.optimstudy._report import (
    Arm as Arm,
    Curve as Curve,
    Difference as Difference,
    Finder as Finder,
    OptimizerStudy as OptimizerStudy,
    Point as Point,
    RaceRun as RaceRun,
    Reached as Reached,
    Trial as Trial,
)
from smallalign_core.optimstudy._spec import (
    LIBRARY_RATES as LIBRARY_RATES,
    Entry as Entry,
    OptimizerStudySpec as OptimizerStudySpec,
    entries as entries,
    label_of as label_of,
    name_of as name_of,
    parse_study as parse_study,
    read_study as read_study,
    study_id as study_id,
)
