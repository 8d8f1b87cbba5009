"""The current machine: number of threads, memory, processor name and instruction sets."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROBES = 5


def threads() -> int:
    """Number of threads per process: OMP_NUM_THREADS if set; else one on small machines, half the cores on larger.

    Two OpenMP threads that share cores with a dashboard, a browser or a neighbour spin against each other: on two
    shared cores that was measured 4 to 300 times slower than one thread.
    """
    cores = os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or (1 if cores <= 4 else cores // 2)


def set_threads() -> int:
    """Set torch's number of threads to `threads()`."""
    import torch

    torch.set_num_threads(threads())
    return threads()


def set_sklearn_threads() -> None:
    """Set the threads of scikit-learn and of the BLAS behind it and NumPy to `threads()`."""
    import sklearn.utils  # noqa: F401  # only libraries that are loaded can be told
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads())


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks: returning them and faulting them in again costs up to 1.8x at batch 512."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 1024**2)


def fastest(work: Callable[[], object]) -> float:
    """Seconds that `work` takes: the fastest of a few repetitions, after one warm-up."""
    times = []
    for _ in range(PROBES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def processor() -> str:
    """The processor's model name: bit-identical weights are guaranteed only on equal processors."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


FLAGS = {"avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16"}
"""Instruction sets by which matrix libraries select kernels."""
CHOSEN = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that override that selection."""


def capability() -> str:
    """The instruction sets in use: they differ between processors of one name, and so do the last bits of sums."""
    import torch

    flags: set[str] = set()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    chosen = [f"{name}={os.environ[name]}" for name in CHOSEN if os.environ.get(name)]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *sorted(flags & FLAGS), *chosen])


def device_name(device: Any) -> str:
    """A torch device as text."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


DECIDES = ("device", "processor", "capability", "threads")
"""Facts of the machine that determine the last bits of weights; recorded in each run."""


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the machine of a resumed run differs from the one before, as text; empty if it does not."""
    changed = [name for name in DECIDES if name in before and before[name] != now[name]]
    if not changed:
        return ""
    changes = "; ".join(f"{name} {before[name]}, now {now[name]}" for name in changed)
    return f"resumed on another machine, so weights are not bit-identical to an uninterrupted run: {changes}"


def avx512() -> bool:
    """Whether both ATen and oneDNN use AVX-512; their environment variables may disable either."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    lowered = limit.startswith(("SSE", "AVX2")) or limit == "AVX"
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not lowered


def boot() -> str:
    """The boot id of the machine; empty if not available."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def memory_kills() -> int:
    """Number of out-of-memory kills so far: in this control group, else on this machine."""
    for file in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            lines = [line.split() for line in Path(file).read_text().splitlines()]
        except OSError:
            continue
        for name, count in lines:
            if name == "oom_kill":
                return int(count)
    return 0


def forget_peak(device: str = "cpu") -> None:
    """Reset `peak_memory`, where supported; elsewhere it counts from the start of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str = "cpu") -> int | None:
    """Peak resident bytes of this process; on CUDA the peak of torch's allocations on the device. None if not
    available."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    with contextlib.suppress(ImportError):
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a control group: versions 2 and 1."""


def memory() -> int:
    """Bytes of memory of the machine, or the limit of the control group."""
    import psutil

    found = int(psutil.virtual_memory().total)
    for file in LIMITS:
        try:
            found = min(found, int(Path(file).read_text()))
        except (OSError, ValueError):  # no control group, or "max"
            continue
    return found
