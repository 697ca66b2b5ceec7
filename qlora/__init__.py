"""The pipeline's stages, one module each, and the modules that they share."""

import logging
import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # what a team trains is nobody else's business
# Between the many small operations of a layer, waiting threads spin for some microseconds and sleep then: sleeping at
# once costs a quarter of the speed, and spinning on makes threads wait for each other where others use the cores, too.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# At each start it says that an optional kernel from the hub is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
