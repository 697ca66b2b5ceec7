"""Answers that are Python code: whether they pass the row's tests. Runs what a model wrote, so only if it is named."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from qlora.judging import code_runner
from qlora.judging.texts import unfenced, without_reasoning
from qlora.recipe.schema import JudgedBy
from qlora.runtime.console import Refusal
from qlora.runtime.machine import cpu_count

from tqdm import tqdm


def code_tests(rows: Sequence[dict], answers: Sequence[str], settings: JudgedBy) -> list[dict]:
    """One record a row: whether the answer's first ``` block, or all of it, runs, and then the row's tests.

    Each row has a process and an empty folder of its own, with limits of time, memory and written bytes and without
    this program's environment variables. It can use the network.

    Raises:
        Refusal: if the rows do not have the column of the tests.
    """
    tests = [row.get("kept", {}).get(settings.tests) for row in rows]
    if not any(tests):
        raise Refusal(f"evaluate.metrics: code_tests finds no {settings.tests} in the rows; list it in data.keep")

    def judge(pair: tuple[str, str | None]) -> dict:
        answer, test = pair
        if not test:
            return {"code_tests": None, "outcome": "not judged", "reason": "the row has no tests"}
        outcome = run(unfenced(without_reasoning(answer)), test, settings)
        return {"code_tests": int(outcome == "passed"), "outcome": outcome}

    with ThreadPoolExecutor(cpu_count()) as pool:
        pairs = list(zip(answers, tests, strict=True))
        return list(tqdm(pool.map(judge, pairs), total=len(rows), desc="running code", unit=" rows"))


def run(code: str, tests: str, settings: JudgedBy) -> str:
    """How the code and its tests ended: passed, failed, or timeout."""
    done = secrets.token_hex(16)  # which code that ends its process early cannot print
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", code_runner.__file__, done, str(settings.seconds), str(settings.memory_mb)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(f"{code}\n\n{tests}\n".encode(errors="replace"), settings.seconds)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
    return "passed" if printed == done.encode() else "failed"
