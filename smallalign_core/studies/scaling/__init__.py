"""Scaling studies: the value of each process over sizes x images x recipes x replicates, with a scaling law.

Runs of a study are ordinary runs, found by their digests, so an extended study reuses all finished runs. Reading a
study does not import torch: the dashboard reads through this package. The statistics are in `studies.scaling_law`.
"""

from __future__ import annotations

from smallalign_core.studies.base import study_id as study_id
from smallalign_core.studies.scaling._build import report as report
from smallalign_core.studies.scaling._expected import expected as expected
from smallalign_core.studies.scaling._plan import (
    MOST_REPLICATES as MOST_REPLICATES,
    ROUND as ROUND,
    Cell as Cell,
    most_of as most_of,
    prepare as prepare,
    probes as probes,
    resolved as resolved,
    wanted as wanted,
)
from smallalign_core.studies.scaling._report import (
    CellMean as CellMean,
    Cost as Cost,
    LadderRung as LadderRung,
    LawReading as LawReading,
    Line as Line,
    MultiplierMap as MultiplierMap,
    Paired as Paired,
    RecipeValue as RecipeValue,
    ScalingStudy as ScalingStudy,
)
from smallalign_core.studies.scaling._spec import (
    PILOT as PILOT,
    PRESETS as PRESETS,
    RECIPES as RECIPES,
    REPLICATES as REPLICATES,
    UNLABELED as UNLABELED,
    ScalingStudySpec as ScalingStudySpec,
    Target as Target,
    epochs_of as epochs_of,
    parse_study as parse_study,
    title_of as title_of,
)
