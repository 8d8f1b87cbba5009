"""Restrictions that the sandboxed process applies to itself before it opens a model file. They are irreversible."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import platform
from pathlib import Path

NEW_USER, NEW_NET = 0x10000000, 0x40000000
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
X32 = 0x40000000
"""Bit of the x32 system call numbers on x86-64."""

CALLS = {  # socket, connect, ptrace, execve, execveat, process_vm_writev, io_uring_setup, of each machine
    "x86_64": (0xC000003E, (41, 42, 101, 59, 322, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 117, 221, 281, 271, 425)),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("true", ctypes.c_ubyte), ("false", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def leave_network() -> bool:
    """Enter new user and network namespaces: no network, and no privileges outside even for root.

    Returns:
        Whether the kernel allows it; some containers and distributions do not.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        return any(libc.unshare(flags) == 0 for flags in (NEW_USER | NEW_NET, NEW_NET))
    return False


def refuse_calls() -> bool:
    """Block system calls that open sockets, start programs or access other processes, permanently, by seccomp.

    Returns:
        Whether the kernel allows it; no privileges are needed.
    """
    machine, numbers = CALLS.get(platform.machine(), (0, ()))
    if not numbers:
        return False
    steps = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(IF_AT_LEAST, len(numbers) + 1, 0, X32)]
    steps += [(IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        program = _Program(len(steps), (_Instruction * len(steps))(*(_Instruction(*step) for step in steps)))
        if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
            return bool(libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0) == 0)
    return False


def limit(seconds: int | None, written: int) -> None:
    """Limit CPU time (seconds, if given) and the size of written files (bytes); disable core dumps."""
    with contextlib.suppress(ImportError):
        import resource

        if seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))


def limit_next(seconds: int) -> None:
    """Limit CPU time from now on to `seconds`, or up to one more; each call restarts the limit."""
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        # The kernel counts whole seconds of the process: rounded down, the next image could have next to none.
        end = math.ceil(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def limit_memory(more: int, *, for_good: bool = True) -> None:
    """Limit the address space to what is mapped now plus `more` bytes; permanent once the libraries are loaded."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more if for_good else most))


def lift_memory() -> None:
    """Lift a temporary limit before libraries are loaded that map much memory."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
