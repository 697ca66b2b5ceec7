"""quantize-gguf --type TYPE: one type of GGUF, a file to serve.

Reads models/bf16 (model.gguf and, if they are there, imatrix.gguf and Modelfile); writes models/TYPE (model.gguf, and
the same Modelfile: `ollama create NAME -f models/TYPE/Modelfile`). A type that ends in -plain is made without the
importance matrix.
"""

import argparse
import shutil
import time

from qlora.gguf import file
from qlora.llama_cpp import tools
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, GGUF_TYPES, NEEDS_MATRIX, PLAIN
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [name for type_ in GGUF_TYPES for name in (type_, type_ + PLAIN)]
    parser.add_argument("--type", required=True, choices=choices, metavar="TYPE", help="llama-quantize's name of it")
    artifact, source = ARTIFACTS[parser.parse_args().type], ARTIFACTS["bf16"]
    matrix, modelfile = source.folder / "imatrix.gguf", source.folder / "Modelfile"
    if artifact.name.endswith(PLAIN) or not matrix.is_file():
        matrix = None
    if artifact.name in NEEDS_MATRIX and not matrix:
        raise Refusal(f"{artifact.name} needs an importance matrix and models/bf16 has none: set gguf.imatrix to true")

    begin = time.monotonic()
    with new_folder(artifact.folder) as folder:
        gguf, type_ = folder / artifact.gguf.name, artifact.name.removesuffix(PLAIN)
        tools.quantize(source.gguf, gguf, type_, matrix)
        shutil.copy(source.folder / BASE_RECORD, folder)
        if modelfile.is_file():
            shutil.copy(modelfile, folder)
        contents = file.check_quantized(gguf, source.gguf, type_)
    summary(
        f"quantize-gguf {artifact.name}",
        {
            "file": f"{artifact.gguf}, {contents.size / 1e9:.2f} GB",
            "of the bf16 file": f"{contents.size / source.gguf.stat().st_size:.0%}",
            "tensors": f"{len(contents.shapes)}: {file.describe_types(contents)}",
            "importance matrix": "used" if matrix else "none",
            "seconds": f"{time.monotonic() - begin:.1f}",
        },
    )


if __name__ == "__main__":
    run_stage(main)
