"""Work of low priority."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from smallalign_core.errors import BadInput
from smallalign_core.system import resumable
from smallalign_core.system.priority import at_low_priority


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know priorities of processes only")
def test_only_the_work_has_a_low_priority() -> None:
    before = nice()
    assert at_low_priority(nice) == min(19, before + 10)
    assert nice() == before


def test_what_it_raises_is_raised_here() -> None:
    def refuse() -> None:
        raise BadInput("no", given=1, do="give 2")

    with pytest.raises(BadInput, match="Give 2"):
        at_low_priority(refuse)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know priorities of processes only")
def test_every_step_in_the_background_has_one_and_the_result_is_the_same() -> None:
    def work() -> resumable.Work[list[int]]:
        seen = []
        for step in range(3):
            seen.append(nice())
            yield step / 3
        return seen

    for background in (False, True):
        found = None
        while found is None:
            found, done = resumable.advance(f"nice {background}", work, -1.0, background=background)
        assert done == 1
        assert found == [min(19, nice() + 10 * background)] * 3
