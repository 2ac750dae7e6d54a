"""Run scripts on the device without fp64, in a process of their own.

tests/single_device_jobs.py jobs.json      # {name: [script, words]} becomes {name: "done" or why}
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import single_device  # noqa: E402
import torch  # noqa: E402

from model_diffs.core import script  # noqa: E402
from model_diffs.core.step import load_script  # noqa: E402

torch.set_num_threads(1)
single_device.install()
DEVICE = single_device.NAME


def run(name: str, words: list[str]) -> None:
    """A script as from a shell; SystemExit where it ends otherwise than well."""
    sys.argv = [name, *words]
    module = load_script(HERE.parent / name)
    if hasattr(module, "STEP"):
        script.execute(module)
    else:
        module.main()


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 — whatever it is, it is told
        return "".join(traceback.format_exception(error))[-3000:]
    return "done"


def refused(error: type[Exception], work: Callable[[], object]) -> str:
    with contextlib.suppress(error):
        return f"not refused: {work()}"
    return "done"


def sums() -> None:
    x = torch.ones(3, 2, device=DEVICE)
    assert (x.cpu().double() @ torch.ones(2, dtype=torch.float64)).tolist() == [2, 2, 2]


def gradient() -> None:
    x = torch.ones(3, 2, device=DEVICE)
    weight = torch.ones(2, 2, device=DEVICE, requires_grad=True)
    (x @ weight).square().sum().backward()
    assert weight.grad is not None and weight.grad.cpu().tolist() == [[12, 12], [12, 12]]


here = torch.ones(3, 2, device=DEVICE)
found = {
    "sums": outcome(sums),
    "double": refused(TypeError, here.double),
    "cast": refused(TypeError, lambda: here.to("cpu", torch.float64)),
    "zeros": refused(TypeError, lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE)),
    "two devices": refused(RuntimeError, lambda: here + torch.ones(3, 2)),
    "gradient": outcome(gradient),
}
place = Path(sys.argv[1])
for job, (name, words) in json.loads(place.read_text()).items():
    found[job] = outcome(lambda name=name, words=words: run(name, words))  # type: ignore[misc]
place.write_text(json.dumps(found, indent=2))
