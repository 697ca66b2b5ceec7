"""What a person sees of a program here: one sentence when it cannot go on, a short summary when it is done."""

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable

from qlora.runtime import folders
from qlora.runtime.machine import end_with_parent

FULL_GPU = (
    "error: the GPU's memory is full: end other programs on it, or let this stage take the CPU, which is slower, with "
    "CUDA_VISIBLE_DEVICES= before the command; `make doctor` says what each stage needs"
)
FULL_MEMORY = (
    "error: this machine's memory is full: end other programs, lower train.max_length or evaluate.batch_size, or "
    "choose a smaller model; `make doctor` says what each stage needs"
)


class Refusal(Exception):
    """One sentence for the user: what is wrong, where, and what to do about it.

    `run_stage` prints it and exits with status 1.
    """


def run_stage(main: Callable[[], None], description: str | None = None) -> None:
    """Run the `main` of a stage or tool; turn what ends it early into one sentence and a non-zero exit status.

    SIGTERM (a spot machine's notice, `kill`) raises KeyboardInterrupt as Ctrl-C does: the program unwinds and removes
    half-written outputs. Any other exception is a defect of this project and keeps its traceback.

    Args:
        main: The program.
        description: What `--help` shows of a program that takes no arguments; others parse their own.
    """
    if description:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_parent(signal.SIGTERM)  # if DVC is killed, this stage must not write beside DVC's next run
    try:
        main()
    except Refusal as refusal:
        sys.exit(f"error: {refusal}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; run `dvc repro` again to go on")
    except MemoryError:
        sys.exit(FULL_MEMORY)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for this
            sys.exit(FULL_GPU)
        if "can't allocate memory" in str(error):  # torch's word for it on a CPU
            sys.exit(FULL_MEMORY)
        if "Could not determine home directory" in str(error):
            sys.exit("error: this user has no home folder: set HOME to a folder that this user can write")
        raise
    except BrokenPipeError:
        if not is_unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        sys.exit(1)
    except OSError as error:
        sentence = folders.explained(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def is_unread() -> bool:
    """Whether nobody reads what this process prints any more, as behind `| head`."""
    output = select.poll()
    output.register(sys.stdout, 0)  # reports a closed pipe without being asked to
    return any(event & select.POLLERR for _, event in output.poll(0))


def summary(title: str, facts: dict[str, object]) -> None:
    """Print `facts` (label -> value) as aligned lines under `title`."""
    width = max(map(len, facts), default=0)
    print(f"\n{title}")
    for label, value in facts.items():
        print(f"  {label:<{width}}  {value}")
