"""Many ranks on one machine: processes that share what is loaded, and do nothing but meet."""

import multiprocessing
import time
from datetime import timedelta

import torch.distributed as dist

from prioritymonitor.ranks import Ranks


def on_processes(count, work, patience=timedelta(seconds=120)):
    """What `work(ranks, store)` gives in each of so many processes, by rank.

    They are forked before the store is made: its threads would not live on in them.
    """
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(target=_run, args=(pipe[1], rank, count, work, patience))
        for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    for here, _ in pipes:
        here.send(store.port)
    results = [here.recv() for here, _ in pipes]
    for here, _ in pipes:
        here.send("end")
    for process in processes:
        process.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _run(pipe, rank, count, work, patience):
    store = dist.TCPStore("127.0.0.1", pipe.recv(), None, False, wait_for_workers=False)
    store.add("there", 1)
    while int(store.add("there", 0)) < count:
        time.sleep(0.001)
    try:
        ranks = Ranks(dist.PrefixStore("ranks", store), rank, count, patience)
        pipe.send(work(ranks, store))
    except Exception as error:
        pipe.send(error)
    pipe.recv()  # nobody leaves before all are done


def questions(store, seconds):
    """How often a store answers this process in so many seconds."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        store.add("asked", 0)
        count += 1
    return count
