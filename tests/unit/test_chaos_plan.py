"""Fault plans: what they say, what is wrong with them, and that they survive being written down."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hvtrain import chaos
from hvtrain.chaos.example import EXAMPLE
from hvtrain.chaos.plan import Fault, Plan
from hvtrain.errors import ConfigError, ExitCode
from hvtrain.probe import PHASES


@pytest.fixture
def load(tmp_path):
    def read(text, **bounds):
        path = tmp_path / "plan.yaml"
        path.write_text(textwrap.dedent(text))
        return chaos.load(path, **bounds)
    return read


@pytest.fixture
def problems(load):
    def found(text, **bounds):
        with pytest.raises(chaos.BadPlan) as error:
            load(text, **bounds)
        return error.value.problems
    return found


def test_the_example_is_valid_and_shows_every_kind(load):
    plan = load(EXAMPLE, workers=4, steps=200)
    kinds = Fault.model_fields["kind"].annotation.__args__
    assert {fault.kind for fault in plan.faults} == set(kinds)
    assert plan.name == "plan.yaml"
    assert [str(fault) for fault in plan.faults][:2] == [
        "kill rank 2 in backward of step 40", "kill ranks 1 and 2 in bucket of step 60"]
    assert str(plan.faults[-1]) == "kill a random worker every 20s on average, for 3m"


def test_defaults():
    kill, fail = Fault(kind="kill", step=3), Fault(kind="fail", step=3)
    assert (kill.at, kill.rank, kill.times, kill.planned) == ("forward", "any", 1, 1)
    assert fail.at == "bucket"
    assert Fault(kind="kill", step=3, rank=[1, 2], count=3).planned == 6
    assert Fault.model_validate({"kind": "kill", "every": "2s"}).planned is None


@pytest.mark.parametrize("fault, words", [
    ("{kind: kill, step: 40, phase: backward, rank: 2}", "kill rank 2 in backward of step 40"),
    ("{kind: slow, step: 100, steps: 20, rank: 3, seconds: 0.2}", "slow rank 3 by 0.2s in forward of steps 100 to 119"),
    ("{kind: kill, phase: joining, round: 2, count: 3}", "kill any rank in joining from round 2 on 3 times"),
    ("{kind: kill, phase: evaluation, step: 9}", "kill any rank in evaluation from step 9 on"),
    ("{kind: stop, every: 500ms}", "stop a random worker every 500ms on average, to the end"),
])
def test_faults_say_what_they_do(load, fault, words):
    assert str(load(f"faults: [{fault}]").faults[0]) == words


def test_all_mistakes_at_once_each_with_its_line(problems):
    found = problems("""\
        seed: x
        falts: 3
        faults:
          - {kind: kil, step: 0, pase: forward}
          - {kind: kill}
          - {kind: kill, step: forty, during: 3m, rank: [1, 1]}
          - kind: raise
            every: 2s
            rank: 1
          - {kind: fail, step: 3, phase: optimizer}
          - 7
          - {kind: kill, step: 3, step: 4}
        """)
    assert [(problem.line, problem.key) for problem in found] == [
        (1, "seed"), (2, "falts"), (4, "faults.0.kind"), (4, "faults.0.step"), (4, "faults.0.pase"),
        (5, "faults.1.step"), (6, "faults.2.step"), (6, "faults.2.rank"), (6, "faults.2.during"),
        (7, "faults.3.kind"), (9, "faults.3.rank"),
        (10, "faults.4.phase"), (11, "faults.5"), (12, "faults.6.step")]
    message = str(ConfigError(found))
    for words in ["did you mean faults?", "did you mean kill?", "did you mean phase?", "given twice", "or every: 2s"]:
        assert words in message


def test_the_error_speaks_of_the_plan(problems, load):
    with pytest.raises(chaos.BadPlan, match=r"^1 mistake in the plan:\n") as error:
        load("seed: 3")
    assert error.value.exit_code is ExitCode.USAGE
    assert "faults: required, but missing" in str(error.value)


@pytest.mark.parametrize("fault, key, words", [
    ("{kind: kill, phase: forward}", "step", "every step passes forward; say which one"),
    ("{kind: kill, phase: joining, step: 3}", "step", "knows of no step yet; use round: 2"),
    ("{kind: kill, step: 3, during: 2s}", "during", "only a fault with every"),
    ("{kind: slow, step: 3}", "seconds", "seconds: 0.2, say"),
    ("{kind: slow, seconds: 1, steps: 3, phase: forming}", "steps", "not passed in every step"),
    ("{kind: kill, step: 3, seconds: 1}", "seconds", "only slow has seconds"),
    ("{kind: kill, step: 3, steps: 2}", "steps", "only slow has steps"),
    ("{kind: leave, phase: start}", "phase", "only a worker that has its seat"),
    ("{kind: cut, phase: forming}", "phase", "only within a round"),
    ("{kind: fail, step: 3, phase: committed}", "phase", "use one of forming, state, backward, bucket"),
    ("{kind: kill, phase: checkpoint, rank: 1}", "rank", "only rank 0 writes"),
    ("{kind: kill, every: 2s, step: 3}", "step", "random times, so it has no step"),
    ("{kind: hang, every: 2s}", "kind", "can only kill or stop it; give hang a step"),
    ("{kind: kill, every: 0s}", "every", "a time above 0"),
    ("{kind: kill, step: 3, rank: -1}", "rank", "or any; got -1"),
    ("{kind: kill, step: 3, rank: []}", "rank", "or any; got []"),
    ("{kind: kill, step: 3, rank: true}", "rank", "or any; got True"),
    ("{kind: kill, step: 3, phase: foward}", "phase", "did you mean forward?"),
    ("{step: 3}", "kind", "required, but missing; kill: SIGKILL"),
])
def test_senseless_faults(problems, fault, key, words):
    (problem,) = problems(f"faults:\n  - {fault}")
    assert (problem.line, problem.key) == (2, f"faults.0.{key}")
    assert words in problem.message


def test_what_a_run_cannot_have(problems, load):
    text = "faults: [{kind: kill, step: 40, rank: [0, 3]}, {kind: kill, phase: evaluation, step: 40}]"
    assert load(text, workers=4, steps=40)
    rank, step = problems(text, workers=2, steps=30)
    assert "there is no rank 3 among 2 workers; the ranks are 0 to 1" in rank.message
    assert "30 steps and never comes to step 40" in step.message


@pytest.mark.parametrize("text, words", [
    ("[1, 2]", "expected the keys seed and faults, got a list of 2"),
    ("faults: [", "not valid YAML"),
    ("faults: []", "faults"),
])
def test_files_that_are_no_plans(problems, text, words):
    assert any(words in str(problem) for problem in problems(text))


def test_a_missing_file():
    with pytest.raises(chaos.BadPlan, match="cannot be read: No such file.*hvtrain chaos example"):
        chaos.load("/nowhere/plan.yaml")


def test_a_plan_cannot_be_made_senseless_in_python_either():
    with pytest.raises(ValidationError, match="must know when"):
        Fault(kind="kill")


ranks = st.one_of(st.just("any"), st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
timed = st.builds(
    dict, kind=st.sampled_from(["kill", "stop", "raise", "hang"]), step=st.integers(1, 10**6), rank=ranks,
    phase=st.one_of(st.none(), st.sampled_from(PHASES[4:10])), round=st.one_of(st.none(), st.integers(1, 9)),
    count=st.one_of(st.none(), st.integers(1, 9)))
chance = st.builds(dict, kind=st.just("kill"), every=st.integers(1, 10**6).map(lambda ms: f"{ms}ms"),
                   during=st.one_of(st.none(), st.just("3m")))


@settings(deadline=None, max_examples=40)
@example(faults=[{"kind": "kill", "every": "1ms", "during": None}], seed=0, name="0E0")  # to some readers a number
@given(st.lists(st.one_of(timed, chance), min_size=1, max_size=5), st.integers(0, 2**40), st.text(max_size=12))
def test_plans_survive_yaml_and_json(tmp_path_factory, faults, seed, name):
    plan = Plan.model_validate({"name": name, "seed": seed, "faults": faults})
    path = tmp_path_factory.mktemp("plans") / "p.yaml"
    path.write_text(chaos.dump(plan))
    loaded = chaos.load(path)
    assert loaded.faults == plan.faults and loaded.seed == seed and loaded.name == (name or "p.yaml")
    sent = Plan.model_validate(plan.model_dump(mode="json"))
    assert sent == plan
    assert [fault.fingerprint for fault in sent.faults] == [fault.fingerprint for fault in loaded.faults]
