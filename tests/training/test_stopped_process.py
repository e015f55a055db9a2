import signal
import subprocess
import sys
import time

import pytest

from dpdmd.store.files import read_json

TRAIN = ("-m", "dpdmd", "train", "scenes_dp_dmd", "--set", "train.batch_size=2", "--set", "validation.every=0")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_process_saves_first_and_goes_on(tmp_path, signum, code):
    run = tmp_path / "run"
    command = [sys.executable, *TRAIN, "--set", f"output.folder={run}"]
    process = subprocess.Popen([*command, "--set", "train.num_updates=100000"])
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signum)
    assert process.wait(timeout=120) == code
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = read_json(checkpoint / "state.json")["step"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == step
    if signum == signal.SIGTERM:  # which of them stopped a run makes no difference to what is left
        subprocess.run([*command, "--resume", "--set", f"train.num_updates={step + 1}"], check=True, timeout=240)
        assert read_json(run / "student" / "student.json")["updates"] == step + 1
