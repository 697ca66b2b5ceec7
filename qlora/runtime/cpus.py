"""How many CPUs there are to work with."""

import os


def count() -> int:
    """CPUs that this process may use: a container or a scheduler may have left it a few of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
