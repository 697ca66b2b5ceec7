"""The pipeline's stages, one module each, and the modules that they share."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # what a team trains is nobody else's business
# Where others keep the cores busy, threads that spin at barriers make each other wait: ten times slower was seen.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
