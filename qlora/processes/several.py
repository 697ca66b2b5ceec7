"""Several processes, one a GPU: how a stage starts itself in them, and what they agree on.

The processes are Hugging Face accelerate's (`accelerate launch`, which is torchrun inside), told by arguments that
follow from params.yaml, so there is no second file of settings. Several machines meet through torchrun's own variables:
NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, the same command on each. On a CPU the processes talk through gloo.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record

from qlora.recipe.params import Train
from qlora.runtime.console import Refusal, run_stage
from qlora.training import device
from qlora.training.device import Device

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
MEMORY_LIMIT = "QLORA_MEMORY_LIMIT"  # bytes of each GPU that a run may take, where it was started again with less
PATIENCE = 10  # seconds that a process waits which has lost another, so that the other one's error is seen first

T = TypeVar("T")


class StartAgain(Exception):
    """Memory did not suffice in a process that others wait for: all have to start again, with so many bytes each."""


def wanted(train: Train) -> int:
    """Processes to start on this machine: train.devices, where auto is each GPU that is visible, or one CPU.

    Raises:
        Refusal: if they cannot be had, or train.parallel makes no sense with them.
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
    """Machines that train together: 1 unless NNODES says more.

    Raises:
        Refusal: if a variable that several machines need is missing or is no such number.
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


def devices_here(train: Train) -> Device:
    """What quantize-load-train would use on this machine, and on others like it if it is to run on several.

    Raises:
        Refusal: as `wanted` and `machines` do.
    """
    count = wanted(train) * machines()
    one = device.gpu() if torch.cuda.is_available() else device.cpu()
    if count == 1:
        return one
    free = one.free if one.is_gpu else one.free // count
    return replace(one, name=f"{count} x {one.name}", free=free, count=count, sharded=train.parallel == "fsdp")


def is_started() -> bool:
    """Whether this process is one of several that were started to work together."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def start(module: str, processes: int, *arguments: str, count: int = 1) -> None:
    """Run `python -m module *arguments` in so many processes on this machine, until the last has ended.

    Where `count` machines do so together, their processes form one group.

    What they print goes where this process prints. When one fails the others are ended within half a minute; SIGTERM
    and Ctrl-C are passed on, and leave them as long to write a checkpoint. After StartAgain all of them start anew,
    unless there are other machines, which would not know.

    Raises:
        Refusal: with the sentence of the process that failed first.
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
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its own report of what is reported below
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
    """Kind and message of the exception that ended the process that failed first; both empty if there was none."""
    _, failure = error.get_first_failure()
    kind, _, said = failure.message["message"].partition(": ") if isinstance(failure.message, dict) else ("", "", "")
    return kind, said


def first_failure(error: ChildFailedError, processes: int) -> str:
    """What the process that failed first says of it; its traceback is printed, where it has one."""
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
    """Run a stage's `main` as one of several processes.

    Only the first one prints, and what ends one early is left for the launcher to say.
    """
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends

    @record
    def recorded() -> None:
        try:
            run_stage(main)
        except SystemExit as end:
            raise Refusal(str(end.code).removeprefix("error: ")) from None
        except RuntimeError as error:
            if any(word in str(error) for word in LOST) or isinstance(error, distributed.DistError):
                time.sleep(PATIENCE)
            raise

    status = 1
    try:
        recorded()
        status = 0
    except Exception:
        pass  # recorded
    sys.stdout.flush()
    os._exit(status)  # not through destructors: NCCL's wait for processes that are gone


def memory_limit() -> float:
    """Bytes of each GPU that a run may take, after one that took too much; infinite where there was none."""
    return float(os.environ.get(MEMORY_LIMIT, "inf"))


def state(patience: timedelta | None = None) -> PartialState:
    """This process among the others, each with its own GPU; alone, where it was started alone.

    The first call may say how long they wait for each other, if that is not torch's 10 minutes (on a CPU 30).
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=patience)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return state().is_main_process


def in_any(flag: bool) -> bool:
    """Whether `flag` holds in any process; each has to ask."""
    if state().num_processes == 1:
        return flag
    found = torch.tensor(int(flag), device=state().device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def gathered(value: T) -> list[T]:
    """`value` of each process, in the order of their ranks."""
    return gather_object([value])


def of_first(value: T) -> T:
    """`value` of the first process."""
    return broadcast_object_list([value])[0]
