"""Environment variables that libraries read once, when they are imported; so this package is imported before them.

No result depends on what is set here, which is why no stage lists this file in its `deps:`.
"""

import getpass
import logging
import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # what a team trains is nobody else's business
# OpenMP threads spin for a while between a layer's many small operations, then sleep. Sleeping at once costs a quarter
# of the speed; spinning on makes threads wait for each other where other programs use the cores, too.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# It logs at each start that an optional kernel from the hub is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
try:
    getpass.getuser()
except (KeyError, OSError):  # a container's user without an entry in /etc/passwd; torch and DVC ask for a name
    os.environ["USER"] = f"user-{os.getuid()}"
