"""Backends: the processes that serve the dashboard, how they are started, and how requests are assigned to them.

Requests of different users do not wait for each other. A request has a backend to itself while it is processed;
resumable work (see `system.resumable`) continues in the backend that holds its state, which gets no other requests. So
there is always a free backend for another user: a new one is forked from a process that has imported the libraries,
which takes milliseconds and shares their memory. Idle backends end after a while.
"""

from smallalign_core.service.backends._pool import (
    PULSE as PULSE,
    Backend as Backend,
    Died as Died,
    Full as Full,
    Late as Late,
    Pool as Pool,
)
from smallalign_core.service.backends._start import Starter as Starter, fork_on_request as fork_on_request
