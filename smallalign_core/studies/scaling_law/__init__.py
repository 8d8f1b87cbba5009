"""The scaling law: the value of a recipe in equivalent parameters and images, with intervals and sanity checks.

Only numpy and scipy; independent of runs, stores and torch. See docs/explanation/scaling-law.md.

    runs = Observations.of(rows, chance(10, "nll"))
    draws = resample(runs)                                           # fit and 200 refits
    found = estimate(draws, "distil", "baseline", n, d, "n")         # x2.1 parameters [1.7, 2.6]
    tests = sanity_checks(runs, "baseline", n, d)                       # A/A and known-effect tests, without additional
    runs verdict = gate(draws, tests)                                     # whether multipliers can be shown, and why
    not why = hidden(found, resolution(draws, "baseline", n, d, "n"))    # the same at this cell
"""

from __future__ import annotations

from smallalign_core.studies.scaling_law._allocate import (
    Allocation as Allocation,
    Cost as Cost,
    allocate as allocate,
    fit_cost as fit_cost,
)
from smallalign_core.studies.scaling_law._checks import (
    VACUOUS as VACUOUS,
    Gate as Gate,
    SanityCheck as SanityCheck,
    gate as gate,
    hidden as hidden,
    resolution as resolution,
    resolutions as resolutions,
    sanity_checks as sanity_checks,
)
from smallalign_core.studies.scaling_law._fit import Draws as Draws, Law as Law, fit as fit, resample as resample
from smallalign_core.studies.scaling_law._form import Axis as Axis, Shape as Shape
from smallalign_core.studies.scaling_law._multiplier import (
    Multiplier as Multiplier,
    Plane as Plane,
    estimate as estimate,
    multiplier as multiplier,
    plane as plane,
    smaller as smaller,
)
from smallalign_core.studies.scaling_law._observed import Observations as Observations, chance as chance, make as make
from smallalign_core.studies.scaling_law._plain import as_dict as as_dict
