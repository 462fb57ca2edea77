"""``hvtrain plan`` on measurements that lie in the run already, so that nothing has to be measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hvtrain.cli.main import cli
from hvtrain.config import load
from hvtrain.config.hybrid import HybridConfig
from hvtrain.errors import UsageError, UserCodeError
from hvtrain.hybrid import measurement
from hvtrain.hybrid.costs import LayerCost, ModelCosts
from hvtrain.hybrid.measurement import FILE_NAME, Measurement, digest, kept, key
from hvtrain.hybrid.measuring import Request
from hvtrain.hybrid.speeds import Speeds
from hvtrain.launch import measurer, trials

MB = 10**6
LAYERS = tuple(LayerCost(f"block{number}", 0.02, 0.04, 200 * MB, 120 * MB, 4 * MB) for number in range(24))
COSTS = ModelCosts(LAYERS, 8, "cuda:0", state=2.0, update=0.05, input=100_000)
BIG = ("--nodes", "4", "--devices", "8", "--memory", "80GB", "--bandwidth", "100Gbit")


@pytest.fixture
def job(tmp_path):
    """A job file whose run has a measurement."""
    path = tmp_path / "job.yaml"
    path.write_text(f'version: 1\ntask: {{target: "nowhere:Task"}}\ndata: {{global_batch: 512}}\n'
                    f'run: {{dir: {tmp_path / "run"}}}\n')
    keep(path)
    return path


UNEVEN = """
import numpy as np, torch
import hvtrain

class Uneven(hvtrain.Task):
    def __init__(self, luck):
        self.luck = luck

    def model(self):
        if not self.luck:
            raise ValueError("no such luck")
        return torch.nn.Linear(3, 2)

    def data(self, split):
        return hvtrain.ArraySource(np.zeros((8, 3), np.float32), np.zeros(8, np.int64))

    def loss(self, outputs, batch):
        return torch.nn.functional.cross_entropy(outputs, batch[1], reduction="none")
"""


def keep(path, *overrides, costs=COSTS, **more):
    job = load(path, overrides)
    whole = job.model_copy(update={"hybrid": job.hybrid or HybridConfig()})
    more = {"sizes": measurer.sizes(whole, 1), "threads": 64, **more}
    return measurer.keep(job.run.dir, Measurement(Speeds((costs,)), key=key(whole, measurer.hardware()), **more))


def run(*arguments):
    done = CliRunner().invoke(cli, ["plan", *map(str, arguments)])
    if isinstance(done.exception, Exception):
        raise done.exception
    return done


def test_the_table_and_what_to_type(job):
    done = run(job, *BIG)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"plan for {job}: 4 machines, each with 8 devices of 80 GB, network 100 Gbit/s; 512 samples a step"
    assert lines[1].startswith(
        "measured here: 24 layers, 4.8 GB of parameters, 180 ms a sample forward and backward on cuda:0 (kept in")
    marked = [line for line in lines if line.startswith("* ")]
    assert len(marked) == 2 and marked[1].startswith("* recommended: ")
    shapes = {tuple(line[3:].split()[:3]) for line in lines if " x " in line[:12]}
    assert {shape[2] for shape in shapes} == {"1", "2", "4", "8"}
    assert lines[-1].startswith("train so with:  horovodrun -np 32 -H HOST1:8,HOST2:8,... hvtrain run ")


def test_json_has_every_shape_and_is_alone_on_the_output(job):
    done = run(job, *BIG, "--json")
    value = json.loads(done.stdout)
    assert value["recommended"] in value["predictions"] and value["recommended"]["fits"]
    assert value["cluster"]["memory"] == 80 * 10**9 and value["cluster"]["network"] == 12.5e9
    assert len(value["costs"]["layers"]) == 24 and value["reason"] and value["command"].startswith("horovodrun -np 32")
    kinds = {(p["shape"]["stages"], p["shape"]["recompute"], p["shape"]["codec"]) for p in value["predictions"]}
    assert len(kinds) == 4 * 2 * 4
    assert all(len(p["memory"]) == len(p["split"]) == p["shape"]["stages"] and sum(p["split"]) == 24
               for p in value["predictions"])


def test_all_shows_every_shape(job):
    some, every = run(job, *BIG).stdout.splitlines(), run(job, *BIG, "--all").stdout.splitlines()
    count = len(json.loads(run(job, *BIG, "--json").stdout)["predictions"])
    assert len(every) - len(some) > 0 and sum(" x " in line[:12] for line in every) == count


def test_what_does_not_fit_is_marked_and_the_command_says_how_it_does(job):
    done = run(job, "--nodes", "2", "--devices", "4", "--memory", "12GB")
    rows = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    assert rows and "- does not fit the memory of the devices" in done.stdout
    assert "The whole model does not fit a device: it needs at least" in done.stdout
    assert "hybrid.stages=4" in done.stdout.splitlines()[-1] or "hybrid.stages=2" in done.stdout.splitlines()[-1]


def test_one_machine_is_started_without_horovodrun(job):
    last = run(job, "--devices", "4", "--memory", "12GB").stdout.splitlines()[-1]
    assert last.startswith(f"train so with:  hvtrain run {job} -np ")
    assert "hybrid.stages=" in last and "hybrid.microbatches=" in last


def test_the_command_undoes_what_the_file_says_otherwise(job):
    """Of a job with a split of its own, and of one with a micro-batch."""
    with open(job, "a") as file:
        file.write("hybrid: {stages: 3, split: [8, 8, 8], microbatches: 2}\n")
    keep(job)
    last = run(job, "--devices", "4", "--memory", "12GB").stdout.splitlines()[-1]
    assert "hybrid.split=null" in last
    load(job, [word for word in last.split() if "=" in word])  # is a valid job
    whole = run(job, "--devices", "2", "--link", "1000GB").stdout.splitlines()[-1]
    assert whole.endswith("hybrid=null")


@pytest.mark.parametrize("hybrid, said", [
    ("{stages: 2, microbatches: 4, split: [6, 18]}",
     r"4 replicas x 2 stages, 4 micro-batches, layers split as 6 \+ 18, .* times as long"),
    ("{stages: 2, split: [8, 8]}", r"impossible. hybrid.split is \[8, 8\], 16 layers in 2 stages, but the model has 24"),
    ("{stages: 30}", "impossible. 30 stages need at least 30 layers"), ("{recompute: true}", None)])
def test_the_shape_that_the_file_asks_for_is_predicted_beside_the_best(job, hybrid, said):
    with open(job, "a") as file:
        file.write(f"hybrid: {hybrid}\n")
    keep(job)
    output = run(job, "--devices", "8", "--memory", "80GB").stdout
    assert re.search(f"as the job file has it: {said}", output) if said else "as the job file" not in output


def test_the_command_says_nothing_twice(job):
    """What was typed for the plan stays in the command, but not what the plan says otherwise."""
    last = run(job, *BIG, "hybrid.stages=3", "train.steps=5", "hybrid.microbatches=2").stdout.splitlines()[-1]
    keys = [word.partition("=")[0] for word in last.split() if "=" in word]
    assert "train.steps" in keys and "hybrid.stages=3" not in last and len(keys) == len(set(keys))


def test_nothing_fits(job):
    with pytest.raises(UsageError, match="fits in no shape.*that has 1 GB"):
        run(job, "--devices", "2", "--memory", "1GB")


@pytest.mark.parametrize("option, value, word", [("--memory", "80", "80GB"), ("--bandwidth", "100", "100Gbit"),
                                                 ("--link", "fast", "12.5GB")])
def test_a_mistake_in_an_option_names_it(job, option, value, word):
    done = run(job, option, value)
    assert done.exit_code == 2 and option in done.stderr and word in done.stderr


def test_scripts_and_numpy_have_no_plan(job, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("")
    done = run(script)
    assert done.exit_code == 2 and "a plan takes a job file" in done.stderr
    with pytest.raises(UsageError, match="numpy has no stages"):
        run(job, "framework=numpy")


def test_no_framework_is_imported(job):
    code = ("import sys; from hvtrain.cli.main import cli; cli.main(sys.argv[1:], standalone_mode=False); "
            "print(sorted({'torch', 'tensorflow', 'keras', 'horovod', 'aiohttp'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, "plan", str(job), *BIG], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_measurement_holds_for_the_same_task_and_code_only(job, tmp_path):
    code = tmp_path / "model.py"
    code.write_text("WIDTH = 3\n")
    keep(job, code={str(code): digest(code)})

    def found(*overrides):
        loaded = load(job, ["hybrid={}", *overrides])
        return kept(loaded.run.dir, loaded, measurer.hardware())

    assert found() is not None and found().costs == COSTS
    assert found("train.epochs=9", "hybrid.stages=2", "comm.codec=fp16") is not None
    for change in ("task.args.width=3", "data.global_batch=64", "train.precision=bf16", "optim.name=sgd",
                   "hybrid.devices=cpu", "train.ema=0.99"):
        assert found(change) is None, change
    same = load(job, ["hybrid={}"])
    assert kept(same.run.dir, same, "another machine") is None
    code.write_text("WIDTH = 4\n")
    assert found() is None
    (tmp_path / "run" / FILE_NAME).write_text("{}")
    assert found() is None


def test_a_measurement_with_other_versions_is_none(job, monkeypatch):
    """Another PyTorch may trace a model into other layers, which no split would fit."""
    keep(job)
    loaded = load(job, ["hybrid={}"])
    assert kept(loaded.run.dir, loaded, measurer.hardware()) is not None
    monkeypatch.setattr(measurement.metadata, "version", lambda name: "99.0")
    assert kept(loaded.run.dir, loaded, measurer.hardware()) is None


@pytest.mark.parametrize("change", [{"code": []}, {"code": {"/dev/zero": "00"}}, {"code": {"a\0": "00"}}, {"gpus": "many"},
                                    {"speeds": {"alone": [{"layers": [{"name": "a", "forward": "soon"}], "batch": 1, "device": "cpu"}]}},
                                    {"speeds": {"alone": []}}],
                         ids=str)
def test_whatever_the_file_holds_the_model_is_measured_anew(job, change):
    """The file may have been edited, or be another program's: it must neither end the run nor keep it from beginning."""
    path = keep(job)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    loaded = load(job, ["hybrid={}"])
    assert kept(loaded.run.dir, loaded, measurer.hardware()) is None


def test_a_model_that_cannot_be_built_is_told_as_its_own_error(tmp_path):
    """The measuring process ends with what user code raised, and its traceback."""
    (tmp_path / "nowhere.py").write_text("def Task():\n    raise ValueError('no such luck')\n")
    job = tmp_path / "job.yaml"
    job.write_text('version: 1\nframework: numpy\ntask: {target: "nowhere:Task"}\n')
    with pytest.raises(UserCodeError, match="could not be measured: ValueError: no such luck") as error:
        trials.measure([Request(load(job), str(tmp_path), (4,))])
    assert "in Task" in error.value.traceback_text


def test_none_waits_at_a_gate_for_one_that_has_ended(tmp_path):
    """Two measure at once, and one fails before it gets there: the other is told so, and what the first has said is raised."""
    (tmp_path / "uneven.py").write_text(UNEVEN)
    job = tmp_path / "job.yaml"
    job.write_text('version: 1\ntask: {target: "uneven:Uneven"}\ndata: {global_batch: 4}\n')
    requests = [Request(load(job, [f"task.args.luck={luck}"]), str(tmp_path), (4,)) for luck in ("true", "false")]
    with pytest.raises(UserCodeError, match="no such luck"):
        trials.measure(requests)
    assert [found.costs.batch for found in trials.measure(requests[:1] * 2)] == [4, 4]


def test_what_the_measuring_process_cannot_do_keeps_its_exit_code():
    with pytest.raises(trials.MeasurementFailed, match="could not be measured: no such module") as error:
        trials._read(json.dumps({"exit_code": 2, "reason": "no such module", "traceback": ""}))
    assert error.value.exit_code == 2


def test_a_request_is_about_the_whole_model(job):
    """What a hybrid job may not have, such as data.micro_batch, does not keep its model from being measured."""
    whole = load(job, ["data.micro_batch=8", "train.grad_clip=1.0"])
    request = Request(whole.model_copy(update={"hybrid": HybridConfig(devices="cpu")}), "/", (2, 4), 2, gpu=False)
    heard = Request.from_json(json.loads(json.dumps(request.to_json())))
    assert heard.job == whole and (heard.sizes, heard.threads, heard.gpu) == ((2, 4), 2, False)


@pytest.mark.parametrize("batch, microbatches, workers, sizes", [
    (128, "auto", 1, (8, 32, 128)), (128, "auto", 2, (4, 16, 64)), (128, 16, 1, (2, 8, 32)), (16, "auto", 1, (2, 4, 16)),
    (4, "auto", 1, (1, 4)), (1, "auto", 1, (1,)), (3, 2, 1, (2, 3))])
def test_micro_batches_of_several_sizes_are_measured(job, batch, microbatches, workers, sizes):
    """A usual one, a quarter and four times of it: so what is planned lies between two that were measured, mostly."""
    loaded = load(job, [f"data.global_batch={batch}", f"hybrid.microbatches={microbatches}"])
    assert measurer.sizes(loaded, workers) == sizes


def test_a_measurement_from_before_speeds_is_measured_anew(job):
    """Its profile.json has the costs of one size, and none of those who compute at once."""
    path = keep(job)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**{name: value for name, value in values.items() if name != "speeds"},
                                "costs": values["speeds"]["alone"][0] | {"slope": 0.5}, "parallel": 0.3}))
    loaded = load(job, ["hybrid={}"])
    assert kept(loaded.run.dir, loaded, measurer.hardware()) is None
