"""quantize-gguf --type TYPE: one type of GGUF, a file to serve.

Reads models/bf16 (model.gguf and, if they are there, imatrix.gguf and Modelfile); writes models/TYPE (model.gguf, and
the same Modelfile: `ollama create NAME -f models/TYPE/Modelfile`). A type that ends in -plain is made without the
importance matrix. A size, fit-4.5bpw or fit-100MB, is a file whose tensors each get the type that keeps the answers
nearest to the bf16 file's; types.csv beside it lists them.
"""

import argparse
import shutil
import time

from qlora.gguf import file, fit
from qlora.llama_cpp import tools
from qlora.recipe.artifacts import ARTIFACTS, BASE_RECORD, FIT, GGUF_TYPES, NEEDS_MATRIX, PLAIN, PROJECTOR, find
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.runtime.outputs import new_folder
from qlora.weights.made import check_made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", required=True, metavar="TYPE", help="as in gguf.types")
    name, source = parser.parse_args().type, ARTIFACTS["bf16"]
    fitted = FIT.fullmatch(name) is not None
    if name.removesuffix(PLAIN) not in GGUF_TYPES and not fitted:
        parser.error(
            f"{name!r} is no type; those are {', '.join(GGUF_TYPES)}, and sizes such as fit-4.5bpw or fit-100MB"
        )
    artifact = find(name)
    check_made(source)
    matrix = source.folder / "imatrix.gguf"
    if artifact.name.endswith(PLAIN) or not matrix.is_file():
        matrix = None
    if artifact.name in NEEDS_MATRIX and not matrix:
        raise Refusal(f"{artifact.name} needs an importance matrix and models/bf16 has none: set gguf.imatrix to true")

    if fitted:
        table = fit.read_table(source.folder / fit.TABLE)
        types = fit.choose(table, fit.budget(table, name))

    begin = time.monotonic()
    with new_folder(artifact.folder) as folder:
        gguf = folder / artifact.gguf.name
        if fitted:
            type_ = fit.main_type(table, types)
            fit.quantize(source.gguf, gguf, types, type_, matrix)
            fit.write_choice(folder / fit.CHOICE, table, types)
        else:
            type_ = name.removesuffix(PLAIN)
            tools.quantize(source.gguf, gguf, type_, matrix)
        shutil.copy(source.folder / BASE_RECORD, folder)
        for beside in (source.folder / "Modelfile", source.folder / PROJECTOR):
            if beside.is_file():
                shutil.copy(beside, folder)
        contents = file.check_quantized(gguf, source.gguf, type_)
    summary(
        f"quantize-gguf {artifact.name}",
        {
            "file": f"{artifact.gguf}, {contents.size / 1e9:.2f} GB",
            "of the bf16 file": f"{contents.size / source.gguf.stat().st_size:.0%}",
            "tensors": f"{len(contents.shapes)}: {file.describe_types(contents)}",
            "importance matrix": "used" if matrix else "none",
            **({"predicted KL": f"{fit.predicted(table, types):.2g} nats a token"} if fitted else {}),
            "seconds": f"{time.monotonic() - begin:.1f}",
        },
    )


if __name__ == "__main__":
    run_stage(main)
