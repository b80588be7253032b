"""Sweeps on Ray: a cluster is joined or started on the loopback, a killed worker loses only what came after its checkpoint, and Ctrl-C leaves nothing behind."""
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import REPO, draw_colours, need

from snakecls.core import UserError
from snakecls.experiment.file import make_experiment

need("optuna")
from snakecls.workflow.run_folder import read_status  # noqa: E402
from snakecls.workflow.sweeps import run_sweep  # noqa: E402

SPACE = {"schedule.0.lr": [1e-3, 5e-2]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Thirty tiny photos of each of two colours."
    return draw_colours(tmp_path_factory.mktemp("photos"))


def describe(photos: Path, epochs: int) -> dict:
    return {
        "name": "tiny", "data": {"source": str(photos), "test": 0.2}, "model": {"arch": "lenet5"}, "predict": {"examples": 0},
        "train": {"num_workers": 0, "image_cache": 0, "bs": 2}, "schedule": [{"size": 32, "epochs": epochs, "lr": 1e-3}]}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    "Of Ray's processes: without a grammar of addresses that comes with Jupyter and that each would take seconds to build, as Ray gives them 15 s."
    folder = tmp_path_factory.mktemp("quick")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('not needed here')")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPO)]), "OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0"}


def test_without_ray_there_is_one_sentence(monkeypatch):
    from snakecls.workflow.on_ray import ray_engine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'snakecls\[ray\]'"):
        ray_engine()


def test_machines_are_divided_among_trials():
    from snakecls.workflow.on_ray import trial_share

    with pytest.raises(UserError, match="no machine with a processor"):
        trial_share([{"GPU": 1.0}])
    assert trial_share([{"CPU": 4.0}, {"CPU": 2.0}], 5) == (5, {"num_cpus": 1})  # three on a machine, the smaller of which has two processors


def kill_once_kept(root: Path, name: str, killed: list) -> None:
    "Kill the process of a run once it has a checkpoint."
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for run in root.glob(f"*-{name}"):
            if list(run.glob("checkpoints/resume/000002")) and read_status(run)["status"] == "running":
                os.kill(int(read_status(run)["pid"]), signal.SIGKILL)
                killed.append(run)
                return
        time.sleep(0.02)


def test_a_killed_worker_loses_only_what_came_after_its_checkpoint(photos, tmp_path, environment, monkeypatch):
    "In a cluster that is joined; the table, the weights and the entry are those of a sweep without Ray."
    ray = pytest.importorskip("ray")  # of the extra `dev`, and so of CI's first lane
    import torch

    from snakecls.workflow.on_ray import ray_engine

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=80_000_000)
    except Exception as e:  # noqa: BLE001  Ray raises no kind of its own here
        pytest.skip(f"this machine is too busy for Ray, which gives itself 15 s to start: {e}")
    try:
        said, killed, experiment = [], [], make_experiment(describe(photos, epochs=8))
        watcher = threading.Thread(target=kill_once_kept, args=(tmp_path / "ray", "tiny-t1", killed), daemon=True)
        watcher.start()
        swept = run_sweep(experiment, SPACE, sampler="grid", pruner="none", engine=ray_engine(2), root=tmp_path / "ray", logbook=tmp_path / "ray.md", say=said.append)
        watcher.join()
    finally:
        ray.shutdown()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in Ray's processes: with more of them sums are rounded in another order
    plain = run_sweep(experiment, SPACE, sampler="grid", pruner="none", root=tmp_path / "plain", logbook=tmp_path / "plain.md", say=[].append)
    torch.set_num_threads(threads)
    assert len(killed) == 1 and any("it is tried again, from its checkpoint" in line for line in said)
    columns = ["state", "value", "schedule.0.lr", "epochs"]
    one, two = (each.table.sort_values("schedule.0.lr")[[*columns, "run"]].reset_index(drop=True) for each in (swept, plain))
    assert one[columns].equals(two[columns]) and killed[0].name in set(one["run"])
    for run, other in zip(one["run"], two["run"]):
        weights = [(root / name / "best" / "weights.safetensors").read_bytes() for root, name in ((tmp_path / "ray", run), (tmp_path / "plain", other))]
        assert weights[0] == weights[1]
    assert sorted(path.name[16:] for path in (tmp_path / "ray").iterdir()) == ["tiny-sweep", "tiny-t0", "tiny-t1"]
    assert any("goes on after epoch" in log.read_text() for log in swept.folder.glob("ray-*.log"))
    assert (tmp_path / "ray.md").read_text().count("\n## ") == 1 and "sweep.html" in {path.name for path in swept.folder.iterdir()}


def test_ctrl_c_leaves_no_process_and_all_listens_here(photos, tmp_path, environment):
    "The runs that were going have kept their best so far, and the sweep can go on."
    pytest.importorskip("ray")
    import psutil

    (tmp_path / "e.yaml").write_text(yaml.safe_dump(describe(photos, epochs=5000)))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SPACE))
    words = ["sweep", "e.yaml", "--space", "s.yaml", "--sampler", "grid", "--pruner", "none", "--engine", "ray", "--jobs", "2"]
    driver = subprocess.Popen([sys.executable, "-m", "snakecls", *words], cwd=tmp_path, env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while len({path.parts[-4] for path in (tmp_path / "runs").glob("*-tiny-t*/checkpoints/resume/0*")}) < 2 and time.monotonic() < end and driver.poll() is None:
        time.sleep(0.1)
    if driver.poll() is not None and "Ray did not start" in (told := driver.communicate()[1]):
        pytest.skip(told)
    children = psutil.Process(driver.pid).children(recursive=True)
    ports = []
    for child in children:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            ports += [port for port in child.net_connections("inet") if port.status == psutil.CONN_LISTEN]
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=120)
    assert len(children) > 4 and ports and {port.laddr.ip for port in ports} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, told
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    runs = list((tmp_path / "runs").glob("*-tiny-t*"))
    assert len(runs) == 2 and {read_status(run)["status"] for run in runs} == {"stopped"} and all((run / "best").exists() for run in runs)
    assert "goes on" in told and "Traceback" not in told and driver.returncode not in (0, None)
