"""The machine that this runs on: how many threads to use, how to keep memory, and what its processor is called."""

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
    """How many threads a process may use: OMP_NUM_THREADS if set; else one on small machines, half the cores on larger.

    Two OpenMP threads that share cores with a dashboard, a browser or a neighbour spin against each other: on two
    shared cores that was measured 4 to 300 times slower than one thread.
    """
    cores = os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or (1 if cores <= 4 else cores // 2)


def set_threads() -> int:
    """Let torch use `threads()`."""
    import torch

    torch.set_num_threads(threads())
    return threads()


def set_sklearn_threads() -> None:
    """Let scikit-learn, and what multiplies matrices for it and NumPy, use `threads()`."""
    import sklearn.utils  # noqa: F401  # only libraries that are loaded can be told
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads())


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: giving them back and faulting them in again costs up to 1.8x at batch 512."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 1024**2)


def fastest(work: Callable[[], object]) -> float:
    """Seconds that `work` takes here: the fastest of a few times, after one that warms up."""
    times = []
    for _ in range(PROBES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def processor() -> str:
    """The processor's model: equal weights are promised only on equal processors."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


FLAGS = {"avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16"}
"""Instruction sets that matrix libraries choose their kernels by."""
CHOSEN = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Variables by which people choose for them."""


def capability() -> str:
    """The instruction set that sums are made with: processors of one name differ in it, and so do last bits of sums."""
    import torch

    flags: set[str] = set()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    chosen = [f"{name}={os.environ[name]}" for name in CHOSEN if os.environ.get(name)]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *sorted(flags & FLAGS), *chosen])


def device_name(device: Any) -> str:
    """A torch device in words."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


DECIDES = ("device", "processor", "capability", "threads")
"""What decides the last bits of weights, among what a run notes of the machine that it is trained on."""


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, how the machine of a resumed run differs from the one before; empty if it does not."""
    changed = [name for name in DECIDES if name in before and before[name] != now[name]]
    if not changed:
        return ""
    told = "; ".join(f"{name} {before[name]}, now {now[name]}" for name in changed)
    return f"resumed elsewhere, so its weights are not those of a run that was trained in one go: {told}"


def avx512() -> bool:
    """Whether both ATen and oneDNN compute with AVX-512 here; their environment variables may lower either."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    lowered = limit.startswith(("SSE", "AVX2")) or limit == "AVX"
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not lowered


def boot() -> str:
    """Which start of the machine this is; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def memory_kills() -> int:
    """How many processes the system has killed here for lack of memory: in this control group, else on this machine."""
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
    """Let `peak_memory` count from now, where the system can; elsewhere it counts from the start of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str = "cpu") -> int | None:
    """The most bytes that this process, with all that it does, had resident at once; of CUDA those that torch had on
    the device. None where the system does not say."""
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
"""Where a control group says how much memory its processes may use: versions 2 and 1."""


def memory() -> int:
    """Bytes of memory that there are, or that a control group leaves to this process."""
    import psutil

    found = int(psutil.virtual_memory().total)
    for file in LIMITS:
        try:
            found = min(found, int(Path(file).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return found
