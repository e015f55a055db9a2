"""Training in two gloo processes, as torchrun starts them."""

import os
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing as mp


def in_two_processes(function: Callable, *arguments) -> None:
    """Call function(*arguments) in two processes of one group."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(_worker, (port, function, arguments), nprocs=2)


def _worker(rank: int, port: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    function(*arguments)
    torch.distributed.destroy_process_group()
