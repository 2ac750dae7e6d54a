"""Jobs of a cluster: what they ask for, what they wait for, how they stand. At size: faults/."""

import os
from pathlib import Path

import pytest
from test_graph import whole
from test_plan import make, named, units_of

from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.pipeline import cluster, graph, lock
from model_diffs.pipeline.cluster import Job, Submitter
from model_diffs.pipeline.environment import forget_secrets
from model_diffs.pipeline.studies import Cluster, Models, read_study
from model_diffs.pipeline.units import Unit


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Job]:
    """What waits and runs; jobs that are submitted come to it."""
    found: dict[str, Job] = {}
    monkeypatch.setattr(cluster, "active", lambda outroot: found)
    return found


class Recorder(Submitter):
    """Notes what would be submitted."""

    def __init__(self, queue: dict[str, Job]) -> None:
        self.outroot, self.queue = "outputs", queue
        self.waits: dict[str, str | None] = {}

    def _submit(self, unit: Unit, dependency: str | None) -> str:
        self.waits[unit.name] = dependency
        self.queue[unit.name] = Job(str(100 + len(self.queue)), cluster.WAITS, "Priority")
        return self.queue[unit.name].number


def test_jobs_wait_for_the_jobs_that_make_what_they_read(
    tmp_path: Path, queue: dict[str, Job]
) -> None:
    units = graph.divided(whole(tmp_path), 1)
    recorder = Recorder(queue)
    assert recorder.submit(units, lambda _: None) == len(units)
    number = {name: job.number for name, job in queue.items()}
    assert recorder.waits["create_miniature"] is None
    made = number["create_miniature"]
    assert recorder.waits["unlearn_unlearn.npo"] == f"afterok:{made}"
    noise = recorder.waits["unlearn_unlearn.noise"]
    assert noise == f"afterok:{made}:{number['unlearn_unlearn.npo']}"
    report = recorder.waits["report"]
    assert report and report.startswith(f"afterany:{made}:")
    assert set(report.replace(",", ":").split(":")) & set(number.values()) == {*number.values()} - {
        number["report"]
    }


def test_what_waits_or_runs_is_not_submitted_again_but_waited_for(
    tmp_path: Path, queue: dict[str, Job]
) -> None:
    units = whole(tmp_path)
    queue["create_miniature"] = Job("7", cluster.RUNS, "None")
    recorder = Recorder(queue)
    assert recorder.submit(units, lambda _: None) == len(units) - 1
    assert "create_miniature" not in recorder.waits
    assert recorder.waits["unlearn_unlearn.npo"] == "afterok:7"
    again = Recorder(queue)
    assert again.submit(units, lambda _: None) == 0 and not again.waits


@pytest.mark.parametrize(
    ("launcher", "count"),
    [
        ("python", 1),
        ("accelerate launch --num_processes 2", 2),
        ("accelerate launch --num-processes=8 --cpu", 8),
        ("torchrun --nproc_per_node 4", 4),
    ],
)
def test_a_unit_of_several_processes_asks_for_them(
    tmp_path: Path, launcher: str, count: int
) -> None:
    units = units_of(tmp_path)
    asked = Cluster("gpu", "me", 90, cpus=3, gpus=1, memory=24, arguments={"constraint": "h100"})
    several = cluster.parameters(named(units, "collect_param_stats.py"), asked, launcher.split())
    assert (several["cpus_per_task"], several["gpus_per_node"]) == (3 * count, count)
    assert (several["partition"], several["account"]) == ("gpu", "me")
    assert (several["time"], several["mem"]) == (90, "24GB")
    assert several["additional_parameters"]["constraint"] == "h100"
    alone = cluster.parameters(named(units, "plot_param_stats.py"), asked, launcher.split())
    assert (alone["cpus_per_task"], alone["gpus_per_node"]) == (3, 1)


def test_settings_on_the_command_line_win() -> None:
    given = Cluster("cpu", time=5, arguments={"qos": "low"})
    found = cluster.with_arguments(given, "partition=gpu, time=90,qos=high,mail-type=END")
    assert (found.partition, found.time) == ("gpu", 90)
    assert found.arguments == {"qos": "high", "mail_type": "END"}
    assert cluster.with_arguments(given, "") == given
    for wrong in ("partition", "time=soon", "=x", "1=2"):
        with pytest.raises(BadInput, match="--slurm-args"):
            cluster.with_arguments(given, wrong)


def test_a_study_says_what_its_jobs_ask_for(tmp_path: Path) -> None:
    study = tmp_path / "s.toml"
    study.write_text('[models]\nbase = "b"\n[cluster]\npartition = "gpu"\nqos = "high"\n')
    found = read_study(str(study)).cluster
    assert found.partition == "gpu" and found.arguments == {"qos": "high"}


def test_how_a_unit_stands(tmp_path: Path, queue: dict[str, Job]) -> None:
    outroot = str(tmp_path / "outputs")
    units = units_of(tmp_path, models=Models("./base", unlearned=("./a", "./b", "./c", "./d")))
    parts = [u for u in graph.divided(units, 1) if u.script.name == "collect_param_stats.py"]
    queue[parts[0].name] = Job("5", cluster.WAITS, "Dependency")
    make(parts[1])
    log = cluster.log_folder(outroot) / parts[2].name / "17_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("loading\nout of memory\n\n")
    found = cluster.look(parts, outroot)
    assert [one.state for one in found] == [
        cluster.WAITS, cluster.DONE, cluster.FAILED, cluster.ABSENT
    ]  # fmt: skip
    assert "5 Dependency" in found[0].about
    assert found[2].about == f"{log}: out of memory"
    assert cluster.counts(found) == "1 done, 1 waits, 1 failed, 1 not submitted"


def test_secrets_of_the_env_file_are_not_given_to_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=secret\nOUTROOT=here\n")
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OUTROOT"):
        monkeypatch.setenv(name, "given")
    forget_secrets(str(tmp_path / ".env"))
    left = {name for name in ("HF_TOKEN", "WANDB_API_KEY", "OUTROOT") if name in os.environ}
    assert left == {"WANDB_API_KEY", "OUTROOT"}


def test_jobs_of_one_outroot_are_no_other_ones(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "same").symlink_to("a")
    assert cluster.prefix(str(tmp_path / "a")) == cluster.prefix(str(tmp_path / "same"))
    assert cluster.prefix(str(tmp_path / "a")) != cluster.prefix(str(tmp_path / "b"))


def test_without_a_cluster_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInput, match="needs a SLURM cluster"):
        cluster.active("outputs")


def test_a_pipeline_of_another_host_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123@elsewhere")
    refused = pytest.raises(BadInput, match=r"another host.*123@elsewhere.*remove")
    with refused, lock.hold(str(tmp_path)):
        pass
    assert (tmp_path / ".lock").read_text() == "123@elsewhere"
    (tmp_path / ".lock").unlink()
    with lock.hold(str(tmp_path)):
        pass


def test_a_job_becomes_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, ...]] = []
    monkeypatch.setattr(cluster.os, "execvp", lambda _, words: became.append(words))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.chdir(tmp_path)
    cluster.Command(("python", "step.py"), str(tmp_path), 0)()
    assert became == [("python", "step.py")]
    assert cluster.os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")


def test_what_is_made_from_all_models_is_judged_by_what_is_there_now(
    tmp_path: Path, queue: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = units_of(tmp_path)
    report = units[-1]
    with results.open_run(report.todo[0].planned):
        pass
    assert cluster.look([report], str(tmp_path / "outputs"))[0].state == cluster.DONE
    make(named(units, "collect_param_stats.py"))  # another result came: the page is to be made anew
    assert cluster.look([report], str(tmp_path / "outputs"))[0].state != cluster.DONE
