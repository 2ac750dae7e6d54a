"""Run scripts one after the other in each of several processes, as each would run by itself.

accelerate launch … tests/processes_jobs.py jobs.json 2     # {name: [script, words]}; folder 2
tests/processes_jobs.py jobs.json 1 4     # without a launcher: forks in its stead, 1, then 4
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE / "faults")]

from model_diffs.core import script  # noqa: E402
from model_diffs.core.processes import processes  # noqa: E402
from model_diffs.core.step import load_script  # noqa: E402


def run(outroot: str) -> None:
    """Every job, in one of the processes."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    processes()  # the processes find each other before one of them is busy
    for name, words in jobs.values():
        given = [*words, "--outroot", outroot]
        module = load_script(HERE.parent / name)
        if hasattr(module, "STEP"):
            script.execute(module, given)
        else:
            sys.argv = [name, *given]
            module.main()


def fork(count: int) -> None:
    """Processes that are told what a launcher tells; exit status 1 where one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            told |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": count}
            os.environ.update({name: str(value) for name, value in told.items()})
            try:
                run(str(count))
            except BaseException:  # noqa: BLE001 — what no script may raise, SystemExit too
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    for _ in range(count):
        child, status = os.wait()
        children.remove(child)
        if status:  # the others would wait for it
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


if "RANK" in os.environ:
    run(sys.argv[2])
else:
    import forked

    forked.warm()
    for number in map(int, sys.argv[2:]):
        fork(number)
