"""Signs of life: a line now and then where there is no terminal, and threads that end with their task."""
import threading
import time
from functools import partial

import pytest

from snakecls.progress import Beat, track


def beating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def wait_until_quiet() -> None:
    deadline = time.monotonic() + 5
    while beating() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not beating()


def test_a_long_task_without_a_terminal_tells_how_far_it_is(capsys):
    for _ in track(range(3), "Reading photos", every=0.05):
        time.sleep(0.12)
    wait_until_quiet()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Reading photos: 0 of 3, for about") and any(line.startswith("Reading photos: 2 of 3, ") and line.endswith(" left") for line in lines)


def test_a_single_long_step_tells_too(capsys):
    for _ in track(iter([1]), "Fitting", every=0.05):
        time.sleep(0.3)
    wait_until_quiet()
    assert capsys.readouterr().err.count("Fitting: 0, for about 1 second") >= 3


def test_a_short_task_is_silent(capsys):
    assert list(track(range(1000), "Counting")) == list(range(1000))
    wait_until_quiet()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["error", "left"])
def test_the_thread_ends_with_the_task(how):
    def work() -> None:
        for number in track(range(5), "Reading photos", every=0.02):
            if number == 2 and how == "error":
                raise OSError("gone")
            if number == 2:
                return

    if how == "error":
        with pytest.raises(OSError):
            work()
    else:
        work()
    wait_until_quiet()


def test_batches_count_as_their_photos():
    now = 0.0
    beat = Beat("Reading features", 3068, clock=lambda: now)
    beat.done, now = 640, 40.0
    assert beat.line == "Reading features: 640 of 3,068, 16 a second, about 3 minutes left"


def test_a_run_without_a_terminal_tells_of_its_epochs(tmp_path, monkeypatch, capsys):
    import snakecls.workflow.run as run
    from fastai.callback.core import Callback
    from snakecls.data.demo.draw import make_demo
    from snakecls.experiment.schema import Experiment

    monkeypatch.setattr(run, "TellProgress", partial(run.TellProgress, every=0.02))
    monkeypatch.setattr(run.TellProgress.func, "before_batch", lambda self: time.sleep(0.05), raising=False)
    demo = make_demo(tmp_path / "demo", n_per_species=8, size_px=64, species=["Micrurus fulvius", "Thamnophis sirtalis"], n_workers=1)
    experiment = Experiment(name="told", data={"source": str(demo / "photos.csv"), "target": "binomial"}, model={"arch": "test_resnet", "weights": "none"},
                            schedule=[{"size": 32, "epochs": 2, "bs": 4}])
    result = run.run_experiment(experiment, root=tmp_path / "runs", logbook=None, say=lambda text: None)
    wait_until_quiet()
    told = capsys.readouterr().err
    assert "Training, epoch 1 of 2, photos: " in told and "Training, epoch 2 of 2, photos: " in told and "Validating, photos: " in told
    assert result.metrics["valid"]["n"] > 0 and issubclass(run.TellProgress.func, Callback)


def test_a_run_that_an_error_ends_tells_no_more(tmp_path, monkeypatch):
    import snakecls.workflow.run as run
    from snakecls.data.demo.draw import make_demo
    from snakecls.experiment.schema import Experiment

    def end(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.TellProgress, "before_batch", end, raising=False)
    demo = make_demo(tmp_path / "demo", n_per_species=8, size_px=64, species=["Micrurus fulvius", "Thamnophis sirtalis"], n_workers=1)
    experiment = Experiment(name="ended", data={"source": str(demo / "photos.csv"), "target": "binomial"}, model={"arch": "test_resnet", "weights": "none"},
                            schedule=[{"size": 32, "epochs": 2, "bs": 4}])
    with pytest.raises(KeyboardInterrupt):
        run.run_experiment(experiment, root=tmp_path / "runs", logbook=None, say=lambda text: None)
    wait_until_quiet()
    assert not beating()


def test_short_tasks_that_follow_each_other_share_their_lines(capsys, monkeypatch):
    "By a clock of its own: epochs of 15 seconds would never wait for 20."
    times, told = [100.0], []
    monkeypatch.setattr(Beat, "_tell", lambda self: None)
    for task in range(8):
        with Beat(f"Epoch {task}", 15, clock=lambda: times[-1]) as beat:
            for _ in range(15):
                times.append(times[-1] + 1)
                beat.done += 1
                wait = beat.tell_if_due()
                assert 0 < wait <= 20
                if line := capsys.readouterr().err:
                    told.append((times[-1] - 100, line.split(":")[0]))
    assert told == [(20, "Epoch 1"), (40, "Epoch 2"), (60, "Epoch 3"), (80, "Epoch 5"), (100, "Epoch 6"), (120, "Epoch 7")]
    times.append(times[-1] + 1000)  # nothing was going on: the next task begins a wait of its own
    with Beat("Later", clock=lambda: times[-1]) as beat:
        assert beat.tell_if_due() == 20 and not capsys.readouterr().err
