"""Run the program on standard input under limits: python -I code_runner.py WORD SECONDS MEGABYTES

Prints the word if the program reaches its end, and nothing else. A program with a `main` guard runs it.
"""

import os
import resource
import sys

WRITTEN_BYTES = 10 * 2**20


def main() -> None:
    word, seconds, megabytes = sys.argv[1:]
    del sys.argv[1:]
    program = sys.stdin.buffer.read()
    printed = os.dup(1)
    os.set_inheritable(printed, False)
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, flags), descriptor)
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(float(seconds)) + 1),
        (resource.RLIMIT_FSIZE, WRITTEN_BYTES),
        (resource.RLIMIT_AS, int(megabytes) * 2**20),
    ):
        resource.setrlimit(limit, (most, most))
    exec(compile(program, "answer", "exec"), {"__name__": "__main__"})
    os.write(printed, word.encode())


if __name__ == "__main__":
    main()
