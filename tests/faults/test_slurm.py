"""The tiny study as jobs of a real SLURM cluster of this machine (tests/slurm/cluster.sh)."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kills
import psutil
import pytest
from test_executor import wait_until

CLUSTER = Path(__file__).parents[1] / "slurm" / "cluster.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def why_not() -> str:
    missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if missing:
        return f"no SLURM here: {', '.join(missing)} missing (Debian: slurm-wlm, munge)"
    return "" if os.getuid() == 0 else "a cluster can be started by root only"


pytestmark = [
    pytest.mark.study,
    pytest.mark.xdist_group("kills"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


class Cluster:
    """A running cluster, and a study's pipeline on it."""

    def __init__(self, folder: Path, world: kills.World) -> None:
        self.world = world
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def start(self, outroot: str, *words: str, **more: str) -> "subprocess.Popen[str]":
        given = {**self.environment, "OUTROOT": outroot, **more}
        return self.world.pipeline("--slurm-args", "cpus=1", *words, **given)

    def run(self, outroot: str, *words: str, **more: str) -> tuple[int, str]:
        process = self.start(outroot, *words, **more)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def contents(self, outroot: str) -> dict[str, bytes]:
        found = kills.contents(self.world.root, (outroot,))
        return {name.partition("/")[2]: data for name, data in found.items()}


@pytest.fixture(scope="module")
def cluster(world: kills.World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    environment = {**os.environ, "PATH": PATH}
    subprocess.run([CLUSTER, "start", folder, "4"], env=environment, check=True)
    yield Cluster(folder, world)
    subprocess.run([CLUSTER, "stop", folder], env=environment, check=True)


def of_steps(found: dict[str, bytes], *folders: str) -> dict[str, bytes]:
    return {
        name: data for name, data in found.items() if any(f"/{f}/" in f"/{name}" for f in folders)
    }


def test_jobs_give_the_same_bytes_and_a_killed_one_is_run_again_alone(cluster: Cluster) -> None:
    first = cluster.start("jobs", "--slurm", "--steps", "1,2,14")

    def attacks() -> list[psutil.Process]:
        return [
            one for one in psutil.process_iter(["environ", "cmdline"])
            if "relearn.py" in (one.info["cmdline"] or [])
            and "models/filtered" in " ".join(one.info["cmdline"])
            and (one.info["environ"] or {}).get("OUTROOT") == "jobs"
        ]  # fmt: skip

    assert wait_until(lambda: attacks(), 200)
    for one in attacks():
        one.kill()
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 1 and "step 14 relearn.filtered: failed" in said
    assert "step 2  plot_param_stats.base__to__base__npo: done" in said  # does not depend on it
    status, said = cluster.run("jobs", "--status", "--steps", "1,2,14")
    stand = {line.split()[2]: line for line in said.splitlines() if line.startswith("step ")}
    assert set(stand) >= {"relearn.filtered", "relearn.base", "relearn"} and len(stand) == 4
    assert "failed" in stand["relearn.filtered"] and "_log.out" in stand["relearn.filtered"]
    assert "not run" in stand["relearn.base"]
    status, said = cluster.run("jobs", "--slurm", "--steps", "1,2,14")
    assert status == 0 and "4 jobs submitted, 0 were there already" in said, said
    expected = of_steps(cluster.contents("outputs"), "param_stats", "param_plots", "relearning")
    found = cluster.contents("jobs")
    assert expected and {name: found.get(name) for name in expected} == expected


def test_a_failing_job_leaves_the_others_and_names_itself(cluster: Cluster) -> None:
    weights = next((cluster.world.root / "models/filtered").glob("*.safetensors"))
    whole, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(whole[:500])
    try:
        status, said = cluster.run("broken", "--slurm", "--steps", "1,2")
    finally:
        weights.write_bytes(whole)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert status == 1
    assert "collect_param_stats.base__to__filtered: failed" in said and weights.name in said
    assert "plot_param_stats.base__to__base__npo: done" in said
    assert "plot_param_stats.base__to__filtered: failed not run" in said
    status, said = cluster.run("broken", "--slurm", "--steps", "1,2")
    assert status == 0 and "2 jobs submitted" in said, said


def test_nothing_is_submitted_twice_and_jobs_outlive_the_submitter(cluster: Cluster) -> None:
    later = ("--slurm-args", "cpus=1,begin=now+3600", "--steps", "1,2")
    first = cluster.start("later", "--slurm", *later)
    assert first.stdout is not None
    assert any("4 jobs submitted" in line for line in first.stdout)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = cluster.start("later", "--slurm", *later)
    assert second.stdout is not None
    assert any("0 jobs submitted, 4 were there already" in line for line in second.stdout)
    second.send_signal(signal.SIGINT)
    assert "4 jobs go on" in second.stdout.read() and second.wait() == 130
    status, said = cluster.run("later", "--steps", "1")
    assert status == 2 and "4 jobs of a cluster write under later" in said
    assert "4 waits" in cluster.run("later", "--status", "--steps", "1,2")[1]
    assert "4 jobs ended" in cluster.run("later", "--cancel")[1]
    assert wait_until(
        lambda: "4 waits" not in cluster.run("later", "--status", "--steps", "1,2")[1], 60
    )


def test_a_unit_of_several_processes_gets_them(cluster: Cluster) -> None:
    launcher = (
        "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    )
    launcher += " --dynamo_backend no --main_process_port 0"
    status, said = cluster.run("two", "--slurm", "--steps", "1", LAUNCHER=launcher)
    assert status == 0, said
    record = (cluster.world.root / "two/base__to__filtered/param_stats/run.json").read_text()
    assert '"processes": 2' in record
