"""Speed, memory and quality of scoring, measured: `python -m benchmarks.NAME`."""

import qlora  # noqa: F401 - sets the environment before a benchmark imports torch
