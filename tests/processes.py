"""Processes that make one run, as torchrun starts them, without its cost: they are forked from a
server that has imported everything already."""

import contextlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["roli_fast.train.__main__", "torch.distributed"])

PATIENCE = 600
"""Seconds after which a process counts as hung: on a busy machine a run of three takes minutes."""


@dataclass
class Member:
    """One of the processes: what it returned, or the exception, and what it printed."""

    process: BaseProcess
    answer: Connection
    value: Any = None
    error: str = ""
    output: str = ""

    def join(self) -> "Member":
        """Wait for its end; one that was killed says nothing."""
        with contextlib.suppress(EOFError):
            assert self.answer.poll(PATIENCE), "a process hangs"
            self.value, self.error, self.output = self.answer.recv()
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "a process does not end"
        return self


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(world: int, work: Callable[..., Any], *arguments: Any) -> list[Member]:
    """`work(*arguments)` in `world` processes at once, to the end of all."""
    port = free_port()
    members = []
    for rank in range(world):
        here, there = CONTEXT.Pipe(duplex=False)
        given = (there, os.getpid(), rank, world, port, work, arguments)
        process = CONTEXT.Process(target=_member, args=given)
        process.start()
        there.close()
        members.append(Member(process, here))
    try:
        return [member.join() for member in members]
    finally:
        for member in members:
            member.process.kill()


def end_with(tests: int) -> None:
    """End this process once the process of the tests is gone: of one that was killed, members that
    wait for each other would stay for good, and the server with them."""

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(tests, 0)
                time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _member(
    answer: Connection,
    tests: int,
    rank: int,
    world: int,
    port: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    end_with(tests)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    value, error, output = None, "", io.StringIO()
    sys.stdout = sys.stderr = output
    try:
        value = work(*arguments)
    except BaseException:
        error = traceback.format_exc()
    answer.send((value, error, output.getvalue()))
