"""Where this user's downloads and builds lie: outside every repository, shared by all of them."""

import os
from pathlib import Path


def folder(name: str) -> Path:
    """The folder `name` of this project's cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-pipeline" / name
