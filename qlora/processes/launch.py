"""Start a stage in several processes, one for each GPU, and report why one of them failed.

Hugging Face accelerate starts the processes (`accelerate launch`, which uses torchrun), with arguments derived from
params.yaml instead of a second settings file. Several machines run the same command and meet through torchrun's
variables (NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT). On a CPU the processes communicate through gloo.
"""

import logging
import os
import sys
import time
from collections.abc import Callable

from qlora.recipe.schema import Train
from qlora.runtime.console import Refusal, run_stage

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
MEMORY_LIMIT = "QLORA_MEMORY_LIMIT"  # environment variable: bytes of each GPU that a restarted run may use
REPORT_DELAY = 10  # seconds to wait after losing a peer, so that its own error is reported first


class StartAgain(Exception):
    """Memory ran out in one FSDP process while the others wait for it: restart all with this limit in bytes."""


def wanted(train: Train) -> int:
    """Number of processes on this machine: train.devices, or for auto one for each visible GPU, or one on a CPU.

    Raises:
        Refusal: if the machine has fewer devices, or train.parallel does not suit them.
    """
    gpus = torch.cuda.device_count()
    there = gpus or os.cpu_count() or 1
    each = train.batch_size // machines()
    here = max(1, min(gpus, each)) if train.devices == "auto" else train.devices
    if here > there:
        what = f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible" if gpus else f"there are {there} CPU cores"
        raise Refusal(f"train.devices: {here} are wanted, and {what}; lower it or set it to auto")
    if here * machines() > train.batch_size:
        raise Refusal(
            f"train.batch_size: {train.batch_size} rows a step cannot keep {here * machines()} processes busy; raise "
            "it or lower train.devices"
        )
    if train.parallel == "fsdp" and not gpus:
        raise Refusal("train.parallel: fsdp shards the model over GPUs, and there is none; set it to ddp")
    if train.parallel == "fsdp" and here * machines() == 1:
        raise Refusal("train.parallel: fsdp shards the model over several GPUs, and there is one; set it to ddp")
    return here


def machines() -> int:
    """Number of machines that train together: NNODES, 1 by default.

    Raises:
        Refusal: if a variable that several machines need is missing or not a number.
    """
    count = os.environ.get("NNODES", "1")
    if not count.isdecimal() or int(count) == 0:
        raise Refusal("NNODES: this variable is the number of machines, 1 or more; see docs/several_gpus.md")
    if int(count) == 1:
        return 1
    for name in ("NODE_RANK", "MASTER_PORT"):
        if not os.environ.get(name, "").isdigit():
            raise Refusal(f"{name}: several machines need a number in this variable; see docs/several_gpus.md")
    if "MASTER_ADDR" not in os.environ:
        raise Refusal("MASTER_ADDR: several machines need the first one's address here; see docs/several_gpus.md")
    return int(count)


def is_started() -> bool:
    """Whether this process was started by `start` (or torchrun)."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def start(module: str, processes: int, *arguments: str, count: int = 1) -> None:
    """Run `python -m module *arguments` in several processes and wait for them.

    They print to this process's output. If one fails, the others are terminated within half a minute. SIGTERM and
    Ctrl-C are passed on, with the same time to write a checkpoint. After StartAgain all processes are restarted, unless
    other machines take part, which would not know of it.

    Args:
        module: A stage.
        processes: Number on this machine.
        arguments: Of the stage.
        count: Number of machines that run this command; their processes form one group.

    Raises:
        Refusal: with the message of the process that failed first.
    """
    meeting = ["--num_machines", str(count), "--main_process_port", "0"]
    if count > 1:
        rank, address, port = (os.environ[name] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
        meeting = ["--num_machines", str(count), "--machine_rank", rank]
        meeting += ["--main_process_ip", address, "--main_process_port", port]
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, torch.get_num_threads() // processes)
    flags = ["--multi_gpu", "--num_processes", str(processes * count), "--gpu_ids", "all"]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    flags += ["--num_cpu_threads_per_process", str(threads), *meeting]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it would report the same failure
    try:
        launch_command(launch_command_parser().parse_args([*flags, "--module", module, *arguments]))
        return
    except ChildFailedError as error:
        failed = error
    except SignalException:
        raise KeyboardInterrupt from None
    kind, said = last_words(failed)
    if kind != StartAgain.__name__:
        raise Refusal(first_failure(failed, processes * count))
    if count > 1:
        raise Refusal("the GPUs' memory is full: set train.memory to low")
    print("the GPUs' memory ran out: starting again with a lighter layout", flush=True)
    os.environ[MEMORY_LIMIT] = said
    start(module, processes, *arguments)


def last_words(error: ChildFailedError) -> tuple[str, str]:
    """Class name and message of the first failed process's exception; both empty if it raised none."""
    _, failure = error.get_first_failure()
    kind, _, said = failure.message["message"].partition(": ") if isinstance(failure.message, dict) else ("", "", "")
    return kind, said


def first_failure(error: ChildFailedError, processes: int) -> str:
    """A sentence about the first failed process; its traceback is printed unless it raised Refusal."""
    rank, failure = error.get_first_failure()
    who = f"process {rank} of {processes}"
    if failure.exitcode < 0:
        return f"{who} was ended by {failure.signal_name()}; run `dvc repro` again to go on"
    kind, sentence = last_words(error)
    if not kind:
        return f"{who} ended with exit status {failure.exitcode}; run `dvc repro` again to go on"
    if kind == Refusal.__name__:
        return sentence
    print(failure.message["extraInfo"]["py_callstack"], file=sys.stderr)
    return f"{who} ended with {kind}: {sentence}"


def work(main: Callable[[], None]) -> None:
    """Run a stage's `main` in one of several processes.

    Only rank 0 prints. An exception is recorded for the launcher, which reports it.
    """
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends

    @record
    def recorded() -> None:
        try:
            run_stage(main)
        except SystemExit as end:
            raise Refusal(str(end.code).removeprefix("error: ")) from None
        except RuntimeError as error:
            if any(word in str(error) for word in LOST) or isinstance(error, distributed.DistError):
                time.sleep(REPORT_DELAY)
            raise

    status = 1
    try:
        recorded()
        status = 0
    except Exception:
        pass  # recorded
    sys.stdout.flush()
    os._exit(status)  # skips destructors: NCCL's would wait for processes that have ended


def memory_limit() -> float:
    """Bytes of each GPU that this run may use; infinite unless it was restarted after memory ran out."""
    return float(os.environ.get(MEMORY_LIMIT, "inf"))
