"""What a person runs: `python -m tools.NAME`. A regular package, so that no installed one of this name comes first."""
