"""quantize-gguf: one type of GGUF, the file that is served.

Reads models/bf16 (model.gguf and, if they are there, imatrix.gguf and Modelfile); writes models/TYPE (model.gguf, and
the same Modelfile: `ollama create NAME -f models/TYPE/Modelfile`). A type that ends in -plain is made without the
importance matrix.
"""

import argparse
import shutil
import time
from pathlib import Path

from qlora.gguf import file as gguf_file
from qlora.llama_cpp import tools as llama_cpp
from qlora.recipe.params import GGUF_TYPES, NEEDS_MATRIX, PLAIN
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder
from qlora.source import base_model

SOURCE = Path("models/bf16/model.gguf")
MATRIX = Path("models/bf16/imatrix.gguf")
MODELFILE = Path("models/bf16/Modelfile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [name for type_ in GGUF_TYPES for name in (type_, type_ + PLAIN)]
    parser.add_argument("--type", required=True, choices=choices, help="llama-quantize's name of the type")
    type_ = parser.parse_args().type
    matrix = MATRIX if MATRIX.is_file() and not type_.endswith(PLAIN) else None
    if type_ in NEEDS_MATRIX and not matrix:
        raise Refusal(f"{type_} needs an importance matrix and there is no {MATRIX}: set gguf.imatrix to true")

    begin = time.monotonic()
    output = Path("models") / type_
    with new_folder(output) as folder:
        made_as = type_.removesuffix(PLAIN)
        llama_cpp.quantize(SOURCE, folder / "model.gguf", made_as, matrix)
        shutil.copy(SOURCE.parent / base_model.RECORD, folder)
        if MODELFILE.is_file():
            shutil.copy(MODELFILE, folder)
        contents = gguf_file.check_quantized(folder / "model.gguf", SOURCE, made_as)
    summary(
        f"quantize-gguf {type_}",
        {
            "file": f"{output / 'model.gguf'}, {contents.size / 1e9:.2f} GB",
            "of the bf16 file": f"{contents.size / SOURCE.stat().st_size:.0%}",
            "tensors": f"{len(contents.shapes)}: {gguf_file.describe_types(contents)}",
            "importance matrix": "used" if matrix else "none",
            "seconds": f"{time.monotonic() - begin:.1f}",
        },
    )


if __name__ == "__main__":
    run_stage(main)
