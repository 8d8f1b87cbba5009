"""Backends: the processes that answer the dashboard, how they are started, and which one a question goes to.

Questions of different visitors do not wait for each other. A question takes a backend of its own while it is answered;
long work that is handed over in steps (see `steps`) goes on in the backend that holds what is unfinished, and no other
question is sent there. So whatever one visitor asks, another finds a free backend: one more is forked from a process
that has imported the libraries already, which takes milliseconds and shares their memory. Backends that nobody needs
end after a while.
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
