"""Whole runs of SAEs that several processes train between them: the same as one process's, whatever ends when."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.errors import RecipeError, TryAgainError
from shared.sealed_json import read_sealed
from tests.train import tiny_run
from tests.train.team import run_team
from tests.train.test_run import metrics, weights
from train.export import load_sae
from train.processes import Process
from train.trainer import Trainer
from train.training_set import CHECKPOINTS

RECIPE = {
    "train": tiny_run.RECIPE["train"] | {"num_tokens": 64 * 24, "checkpoint_steps": 5, "held_out_rows": 64,
                                         "held_out_steps": 7},
    "sae": [{"architecture": "batchtopk", "d_sae": 24, "k": 3, "dead_after_tokens": 256},
            {"architecture": "topk", "d_sae": 24, "k": 3}, {"architecture": "jumprelu", "d_sae": 24, "l0": 3.0}],
}
ROOT = Path(__file__).parents[2]


def train(shards, runs, ending=None):
    """Train, or end as ``ending`` says: (rank, signal) at step 13. Gives the folders, or how it ended."""
    original = Trainer.step

    def step(self, x, variance, count):
        if ending and (shards.rank, count, self.name[:4]) == (ending[0], 13, "topk"):
            os.kill(os.getpid(), ending[1])
        original(self, x, variance, count)

    Trainer.step = step
    if ending:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forkserver's processes ignore none, a test runner may
    try:
        return tiny_run.train(runs, RECIPE, shards=shards)[1]
    except TryAgainError as error:
        return str(error)
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folders that two processes leave."""
    first, second = run_team(2, train, tmp_path_factory.mktemp("two"))
    assert first == second
    return first


def test_two_processes_leave_the_files_and_the_figures_of_one(undisturbed, tmp_path):
    _, alone = tiny_run.train(tmp_path, RECIPE)
    for one, two in zip(alone, undisturbed, strict=True):
        assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
        run, team_run = read_sealed(one / "run.json"), read_sealed(two / "run.json")
        assert (run["tensor_parallel"], team_run["tensor_parallel"]) == (1, 2)
        assert run["recipe"] == team_run["recipe"]
        assert run["l0_train"] == team_run["l0_train"]
        assert run["dead_train"] == team_run["dead_train"]
        assert [line["step"] for line in metrics(two)] == [7, 14, 21, 24]
        for line, team_line in zip(metrics(one), metrics(two), strict=True):
            assert line.keys() == team_line.keys()
            assert "held_out_l0" in line or line["step"] not in {14, 24}
            for key, value in line.items():
                # Six digits are written: the last of them may be rounded the other way.
                assert team_line[key] == pytest.approx(value, rel=1e-5, abs=1e-6), (two.name, line["step"], key)
        sae, team_sae = load_sae(one), load_sae(two)
        for name in "W_enc", "b_enc", "W_dec", "b_dec":
            whole = getattr(sae, name)
            assert (getattr(team_sae, name) - whole).norm() <= 1e-5 * whole.norm(), (two.name, name)
    layer = undisturbed[0].parent
    assert {path.name for path in layer.iterdir()} == {folder.name for folder in undisturbed} | {CHECKPOINTS}
    assert not list((layer / CHECKPOINTS).iterdir())  # neither a lock nor a set is left


def test_one_that_is_killed_ends_the_other_at_once_and_both_go_on_to_the_same_bits(undisturbed, tmp_path):
    for rank in 1, 0:
        runs, began = tmp_path / str(rank), time.monotonic()
        found = run_team(2, train, runs, (rank, signal.SIGKILL))
        assert found[rank].code == -signal.SIGKILL
        assert "has ended" in found[1 - rank]
        assert time.monotonic() - began < 120  # by the closed connection: the time limit is a day
        assert [path.name for path in sorted(runs.rglob("step-*"))] == ["step-000000005", "step-000000010"]
        folders = run_team(2, train, runs)[0]
        assert weights(folders) == weights(undisturbed)
        assert [metrics(folder) for folder in folders] == [metrics(folder) for folder in undisturbed]


def test_a_signal_to_one_stops_both_at_the_same_step(undisturbed, tmp_path):
    assert run_team(2, train, tmp_path, (1, signal.SIGTERM)) == [143, 143]
    assert sorted(path.name for path in tmp_path.rglob("step-*"))[-1] == "step-000000014"
    assert weights(run_team(2, train, tmp_path)[0]) == weights(undisturbed)


def test_a_run_goes_on_with_another_number_of_processes(undisturbed, tmp_path):
    for before, after in (2, 1), (1, 2):
        runs = tmp_path / f"{before}{after}"
        assert run_team(before, train, runs, (0, signal.SIGTERM))[0] == 143
        folders = run_team(after, train, runs)[0]
        assert read_sealed(folders[0] / "run.json")["tensor_parallel"] == after
        for folder, expected in zip(folders, undisturbed, strict=True):
            assert folder.name == expected.name
            W_dec = load_sae(expected).W_dec
            assert (load_sae(folder).W_dec - W_dec).norm() <= 1e-5 * W_dec.norm()


@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_that_make_no_whole_teams_are_told_so(world_size):
    with pytest.raises(RecipeError, match=r"tensor_parallel is 2: .*torchrun --nproc-per-node 2"):
        Process(0, 0, world_size).team(2)


def test_neighbours_make_a_team():
    teams = [Process(rank, rank % 4, 8).team(2) for rank in range(8)]
    assert [team.rank for team in teams] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {team.world_size for team in teams} == {4}
    assert Process(3, 1, 8).team(1) == Process(3, 1, 8)


def torchrun(processes, *words):
    """torchrun of this Python, begun with the command ``train run`` on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes,
               "-m", "train", "run", "--layer", "2", "--device", "cpu", "--threads", "1", *words]
    return subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ended(started, seconds=600):
    """Its exit code and what it said; one that takes too long is killed."""
    try:
        out, err = started.communicate(timeout=seconds)
    finally:
        started.kill()
    return started.returncode, out, err


TINY = ["--set", "train.batch_size=64", "--set", "train.num_tokens=2560", "--set", "sae.architecture=topk",
        "--set", "sae.k=3", "--set", "sae.d_sae=32", "--set", "train.held_out_rows=64"]


def test_the_command_under_torchrun_trains_and_evaluates_one_sae_with_two_processes(cache_folder, tmp_path):
    code, out, err = ended(torchrun(2, "--cache", cache_folder, "--runs", tmp_path, *TINY, "--set",
                                    "train.tensor_parallel=2"))
    assert code == 0, err
    [folder] = (tmp_path / cache_folder.name / "layer2").glob("topk-*")
    assert out.splitlines()[-1] == str(folder)
    assert out.count("held-out rows") == 1  # one of them speaks
    assert read_sealed(folder / "run.json")["tensor_parallel"] == 2
    assert json.loads((folder / "eval.json").read_text())["d_sae"] == 32


def newest_step(runs):
    return max((path.name for path in runs.rglob("step-*")), default="")


@pytest.mark.system
@pytest.mark.timeout(1800)
def test_torchrun_killed_or_stopped_goes_on_to_the_same_bits(cache_folder, tmp_path):
    """Two teams of two, with an SAE each of a grid. Killed is one process, stopped is torchrun itself."""
    words = ["--cache", cache_folder, *TINY, "--set", "train.num_tokens=32000", "--set", "train.checkpoint_steps=99",
             "--set", "sae.seed=[0, 1]", "--set", "train.tensor_parallel=2"]
    code, _, err = ended(torchrun(4, *words, "--runs", tmp_path / "whole"))
    assert code == 0, err
    expected = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(expected) == 6  # of each SAE weights and two files of sums
    runs = tmp_path / "broken"
    for stop in signal.SIGKILL, signal.SIGTERM:
        started, before = torchrun(4, *words, "--runs", runs), newest_step(runs)
        while newest_step(runs) == before:
            if started.poll() is not None:
                pytest.fail(f"It ended before it was stopped, and said:\n{started.stderr.read()}")
            time.sleep(0.02)
        workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(workers[-1]) if stop == signal.SIGKILL else started.pid, stop)
        code, _, err = ended(started)
        assert code != 0, err
        if stop == signal.SIGTERM:
            assert err.count("Checkpoint written at step") == 2, err
    code, _, err = ended(torchrun(4, *words, "--runs", runs))
    assert code == 0, err
    assert {path.relative_to(runs): path.read_bytes() for path in runs.rglob("*.safetensors")} == expected
