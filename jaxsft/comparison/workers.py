"""Jobs in processes of their own, each on a core of its own."""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from jaxsft.errors import UserError


def run(function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], count: int = 0) -> None:
    """Calls `function(*job)` for every job.

    One that fails, and Ctrl-C, end those that run and leave the rest. Workers end with this process, however it ends.

    Args:
      function: of a module that workers can import; it starts jax, which this process does not.
      jobs: arguments that can be pickled; the last of each names it in messages.
      count: processes; 0 is one a core, or one where there is an accelerator, which processes cannot share.

    Raises:
      UserError: naming the job, if one raises it or its process dies.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = min(count or (len(cores) if _only_cpus() else 1), len(jobs))
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for i in range(count):
        free.put(cores[i % len(cores)] if count > 1 else None)
    ours, theirs = context.Pipe()
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _start, (free, theirs))
    with tqdm(total=len(jobs), desc="comparing", unit="job") as bar, pool:
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it: Ctrl-C reaches them as well
        names = {pool.submit(function, *job): job[-1] for job in jobs}
        signal.signal(signal.SIGINT, answer)
        try:
            try:
                for done in concurrent.futures.as_completed(names):
                    done.result()
                    bar.update()
            except BaseException:
                ours.close()  # ends the workers, or the pool would wait for the jobs that it has handed out
                raise
        except UserError as error:
            raise UserError(f"{names[done]}: {error}") from error
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker died, at {names[done]} or a job beside it (out of memory?); see their log.txt, and run the "
                "same command with fewer --jobs."
            ) from error
        except Exception as error:
            error.add_note(f"at {names[done]}; what it printed is in its log.txt")
            raise


def _start(free: Any, alive: Any) -> None:
    """Takes a core before jax counts them: a small model is fastest on one, and processes leave each other alone.

    A worker that outlived the parent would hold its workdir, so it ends when the other end of `alive` is closed, which
    happens to a killed parent's too.
    """
    core = free.get()
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, of which Python warns when the worker is ended
    end = lambda: (alive.poll(None), os._exit(1))
    threading.Thread(target=end, daemon=True).start()


@functools.cache
def _only_cpus() -> bool:
    """Whether jax finds nothing but CPUs, asked in another process: the one that asks would hold an accelerator."""
    ask = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == "cpu"
