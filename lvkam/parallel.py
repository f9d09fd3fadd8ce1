"""Several processes that train one model, started by torchrun: who they are, and what they tell one another.

Every process holds the whole model. The first one alone reads and writes the run folder; what the others need of it,
and every decision that a clock or a signal brings about, comes from there, so that all take the same steps.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from lvkam.errors import FailureError, InputError, StoppedError

_LOST = re.compile(
    r"closed by peer|connection (was )?(closed|reset|refused|aborted)|broken pipe|socket (timeout|closed)|timed out|"
    r"nccl (error|communicator)|remote process (exited|may have)|heartbeat",
    re.IGNORECASE,
)
"""What torch says of a process that is gone: there is no type of error for it alone."""


class PeerError(FailureError):
    """Another process of the job has ended or failed."""


@dataclass(frozen=True)
class World:
    """The processes of a job, and which of them this one is.

    Args:
        rank: in 0..size-1.
        size: N.
        local_rank: among those on this machine, by which it has its GPU; None without torchrun.
        restarts: how often torchrun has started the job again.
        job: torchrun's name for it, the same after every restart.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    restarts: int = 0
    job: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, count: int) -> tuple[slice, bool]:
        """Which of so many things are this process's; where none is, the first one, and False."""
        start, end = (count * r // self.size for r in (self.rank, self.rank + 1))
        return (slice(start, end), True) if end > start else (slice(1), False)

    def gather(self, x: Tensor) -> Tensor:
        """A tensor of each process, of one shape: (...) -> (N, ...), the same to the bit in all.

        Raises:
            PeerError: a process is gone.
        """
        if self.size == 1:
            return x.unsqueeze(0)
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with self.talking():
            dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    def total(self, *numbers: float) -> list[float]:
        """Sums over the processes, in float64."""
        return self.gather(torch.tensor(numbers, dtype=torch.float64)).sum(0).tolist()

    def first(self, *numbers: float) -> list[float]:
        """Those of the first process."""
        return self.gather(torch.tensor(numbers, dtype=torch.float64))[0].tolist()

    def spread(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.size == 1:
            return
        with self.talking(), torch.no_grad():
            for tensor in tensors:
                received = tensor.clone(memory_format=torch.contiguous_format)
                dist.broadcast(received, 0)
                tensor.copy_(received)  # which tells those that keep something of it that it has changed

    def spread_bytes(self, content: bytes) -> bytes:
        """Those of the first process, whatever the others give."""
        if self.size == 1:
            return content
        (length,) = self.first(len(content))
        held = np.frombuffer(content, np.uint8) if self.is_first else np.zeros(int(length), np.uint8)
        tensor = torch.from_numpy(held.copy())
        self.spread([tensor])
        return tensor.numpy().tobytes()

    def averaging_gradients(self, module: nn.Module) -> nn.Module:
        """The module, the gradients of its forward's result becoming their mean over the processes."""
        if self.size == 1:
            return module
        # Neither grids nor anything else that is no parameter changes but in all processes alike. The older name of the
        # option is deprecated where there is the newer one.
        options = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
        with self.talking():
            return DistributedDataParallel(module, **{name: False})  # pyright: ignore[reportArgumentType]  # any of them

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Context in which what torch raises of a process that is gone becomes a PeerError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _LOST.search(str(error)):
                raise
            raise PeerError(f"process {self.rank} of {self.size}: another process of the job has ended") from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """Context that all processes leave, or none: an error in one of them ends the others too.

        Raises:
            StoppedError: in the first process something was wrong.
            PeerError: only in others.
        """
        fails = True
        try:
            yield
            fails = False
        finally:
            failed = self.gather(torch.tensor([fails]))[:, 0].tolist()
            if failed[0] and not self.is_first:  # what is wrong with all of them is told once
                raise StoppedError("the first process has failed")
            if any(failed) and not fails:
                raise PeerError(f"process {failed.index(True)} of {self.size} has failed, and says why")


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Context in which this process is one of those that torchrun has started; `ALONE` without torchrun.

    Raises:
        InputError: torchrun's variables make no sense.
        PeerError: the others cannot be reached.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in names)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        world = World(rank, size, local_rank, restarts, os.environ.get("TORCHELASTIC_RUN_ID", "none"))
    except (KeyError, ValueError) as error:
        raise InputError(f"torchrun sets {', '.join(names)} to numbers; here: {error}") from error
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    # DistributedDataParallel imports this; if only then, its functions keep the group, as a default, for good.
    importlib.import_module("torch.distributed.nn.functional")
    with world.talking():
        store, _, _ = next(rendezvous("env://"))
        # what processes of an earlier start have left in torchrun's store would lead to where nobody listens any more
        store = PrefixStore(f"start {world.restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    yield world
    # The group's threads must end with it: one that lets go of a tensor while the interpreter ends aborts the process.
    gc.collect()  # cycles that hold the group
    # Only when all has gone well, and all are here: closing connections to one that has left can abort the process.
    world.gather(torch.zeros(1))
    dist.destroy_process_group()
