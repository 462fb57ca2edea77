"""The ledger tells every lost and every doubled sample, and nothing else, after any history of rounds."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtrain.data.sampler import GlobalSampler, split
from hvtrain.report import ledger
from hvtrain.report.ledger import Ledger, Records, parse
from hvtrain.report.ledgercheck import ByLedger, audit, check, effective, sampler_of

SAMPLER = GlobalSampler(50, 8, 3)  # 7 steps an epoch, the last one of 2 samples


def attempt(step, round, size=3, *, start=1, sampler=SAMPLER, commit=True, only=None, when=0.0):
    """The lines that one attempt at a step leaves."""
    position, indices = next(item for number, item in enumerate(sampler.walk(), 1) if number == step)
    lines = [json.dumps({"kind": "used", "step": step, "round": round, "start": start, "rank": rank, "size": size,
                         "epoch": position.epoch, "cursor": position.cursor,
                         "indices": split(indices, rank, size).tolist()})
             for rank in range(size) if only is None or rank in only]
    if commit:
        lines += [json.dumps({"kind": "committed", "step": step, "round": round, "start": start, "time": when})] * size
    return lines


def run(*attempts):
    return parse(line for lines in attempts for line in lines)


def verdict(*attempts, against=SAMPLER, steps=None):
    return audit(run(*attempts), against, steps=steps)


def test_an_undisturbed_run():
    report = verdict(*(attempt(step, 1) for step in range(1, 15)))
    assert report.ok and (report.steps, report.samples, report.epochs) == (14, 100, 2)
    assert (report.missing, report.doubled, report.repeated, report.retried, report.sizes) == (0, 0, 0, 0, (3,))
    assert report.verdict == "100 samples in 14 steps, 2 whole epochs: each used exactly once"


def test_an_attempt_that_broke_does_not_count():
    report = verdict(attempt(1, 1), attempt(2, 1, commit=False, only=[0, 2]), attempt(2, 2), attempt(3, 2, size=2))
    assert report.ok and (report.repeated, report.retried, report.sizes) == (0, 1, (2, 3))


def test_a_lost_sample_a_doubled_one_and_a_lost_rank():
    lines = attempt(2, 1)
    first = json.loads(lines[0])
    first["indices"][1] = first["indices"][0]
    report = verdict(attempt(1, 1), [json.dumps(first), *lines[1:]], attempt(3, 1, only=[0, 1]))
    assert not report.ok and (report.missing, report.doubled) == (1 + 2, 1)
    assert "3 samples missing, 1 used once too often" in report.verdict
    assert report.notes[0] == ("step 2 (epoch 0, cursor 8): 1 of 8 samples missing, 1 used once too often; there are "
                               "lines of ranks 0, 1, 2 of 3")
    assert "lines of ranks 0, 1 of 3" in report.notes[1]


def test_a_step_used_by_two_worlds_is_doubled():
    report = verdict(attempt(1, 1), attempt(1, 1))
    assert (report.missing, report.doubled) == (0, 8)


def test_a_step_that_nobody_committed_is_missing():
    report = verdict(attempt(1, 1), attempt(2, 1, commit=False), attempt(3, 2))
    assert not report.ok and (report.steps, report.wanted, report.missing) == (2, 3, 8)
    assert report.notes == ("not committed: step 2",)
    gaps = audit(run(*(attempt(step, 1) for step in (2, 5, 6))), SAMPLER, steps=9)
    assert gaps.notes == ("not committed: steps 1, 3 to 4, 7 to 9",)
    assert not verdict(attempt(1, 1), steps=2).ok


def test_steps_beyond_the_end_are_too_many():
    report = verdict(attempt(1, 1), attempt(2, 1), steps=1)
    assert not report.ok and report.doubled == 8


def test_a_skipped_step_shows_in_all_that_follow():
    """A rank that went on at the wrong position uses samples of another step."""
    shifted = [line.replace('"step": 3', '"step": 2') for line in attempt(3, 1)]
    report = verdict(attempt(1, 1), shifted)
    assert (report.missing, report.doubled) == (8, 8)


def test_after_a_rollback_the_latest_round_counts():
    lost = [line.replace('"indices": [', '"indices": [0, ') for line in attempt(3, 1)]  # what was wrong is gone with it
    report = verdict(attempt(1, 1), attempt(2, 1), lost, attempt(2, 2), attempt(3, 2), attempt(4, 2))
    assert report.ok and report.repeated == 2 and report.steps == 4


def test_a_resumed_run_counts_its_rounds_anew():
    report = verdict(attempt(1, 5), attempt(2, 5), attempt(2, 1, start=2, size=2), attempt(3, 1, start=2, size=2))
    assert report.ok and report.repeated == 1 and report.sizes == (2, 3)


def test_the_last_survivor_may_be_alone_to_have_committed():
    report = verdict(attempt(1, 1), [line for line in attempt(2, 1)][:4], attempt(3, 2))
    assert report.ok and report.repeated == 0


def test_more_ranks_than_samples():
    assert verdict(attempt(1, 1, size=12)).ok


def test_variable_global_batches_name_their_size():
    big = GlobalSampler(50, 12, 3)
    lines = [line.replace('"indices"', '"total": 12, "indices"') for line in attempt(1, 1, sampler=big)]
    position = big.batch(0, 12)[:8]
    after = json.dumps({"kind": "used", "step": 2, "round": 2, "start": 1, "rank": 0, "size": 1, "epoch": 0,
                        "cursor": 12, "indices": position.tolist()})
    done = json.dumps({"kind": "committed", "step": 2, "round": 2, "start": 1, "time": 0.0})
    assert verdict(lines, [after, done]).ok
    assert not verdict(attempt(1, 1, sampler=big), [after, done]).ok


def test_weighted_draws_are_compared_with_another_run():
    weighted = GlobalSampler(50, 8, 3, weights=np.arange(50))
    calm = run(*(attempt(step, 1, sampler=weighted) for step in range(1, 9)))
    disturbed = [attempt(step, 1 + step // 4, size=2 + step // 4, sampler=weighted) for step in range(1, 9)]
    report = audit(run(*disturbed), ByLedger(calm))
    assert report.ok and report.samples == 50 + 8
    assert not audit(run(*disturbed[:-1]), ByLedger(calm), steps=8).ok
    unknown = audit(calm, None)
    assert not unknown.ok and "not known" in unknown.verdict


def test_nothing_is_no_success():
    report = audit(Records(), SAMPLER)
    assert not report.ok and report.verdict == "the ledger is empty"
    assert not audit(Records(), SAMPLER, steps=3).ok


histories = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=12)


@settings(deadline=None, max_examples=80)
@given(histories, st.integers(5, 40), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_history_of_rounds_is_exact(history, length, batch, random):
    """Rounds of any size, each broken after some steps with some ranks' lines of one more, some rolled back."""
    sampler, step, lines = GlobalSampler(length, batch, 1), 0, []
    for round, (size, steps, torn_ranks, rollback) in enumerate([*history, (2, 5, 0, False)], 1):
        for _ in range(steps):
            step += 1
            lines += attempt(step, round, size, sampler=sampler)
        lines += attempt(step + 1, round, size, sampler=sampler, commit=False, only=range(torn_ranks))
        if rollback:
            step = max(0, step - 2)
    random.shuffle(lines)  # files are read one after the other, whatever the order of time
    report = audit(parse(lines), sampler, steps=step)
    last = max((json.loads(line)["step"] for line in lines if "committed" in line), default=0)
    assert report.ok if last == step else report.doubled
    if last == step and report.samples:  # and without any one line that counts it is not
        counting = {(line.step, line.attempt, line.rank) for used in effective(parse(lines)).values() for line in used
                    if len(line.indices)}
        victim = random.choice([number for number, line in enumerate(lines) if '"used"' in line and (
            (entry := json.loads(line))["step"], (1, entry["round"]), entry["rank"]) in counting])
        assert not audit(parse(lines[:victim] + lines[victim + 1:]), sampler, steps=step).ok


# Files ------------------------------------------------------------------------------------------------
def write(path, *, steps=range(1, 8), size=2, sampler=SAMPLER, weighted=False):
    books = [Ledger(path / f"w{rank}.jsonl") for rank in range(size)]
    for rank, book in enumerate(books):
        book.sampler(sampler, weighted=weighted)
        for step, (position, indices) in zip(steps, sampler.walk()):
            book.used(step, 1, rank, size, position.epoch, position.cursor, split(indices, rank, size))
            book.committed(step, 1)
        book.close()


def test_what_is_written_is_read_and_checked_without_the_job(tmp_path):
    write(ledger.directory(tmp_path))
    report = check(ledger.directory(tmp_path))
    assert report.ok and report.samples == 50 and report.epochs == 1
    assert check(ledger.directory(tmp_path), GlobalSampler(50, 8, 4)).missing
    commits = ledger.read(ledger.directory(tmp_path)).committed
    assert all(abs(line.time - time.time()) < 60 for line in commits)


def test_a_line_is_in_the_file_at_once(tmp_path):
    book = Ledger(tmp_path / "w.jsonl")
    book.used(1, 1, 0, 1, 0, 0, [5, 6])
    assert json.loads((tmp_path / "w.jsonl").read_text())["indices"] == [5, 6]
    book.close()


def test_a_torn_last_line_is_left_out_and_counted(tmp_path):
    write(tmp_path)
    with open(tmp_path / "w1.jsonl", "a") as file:
        file.write('{"kind":"used","step":8,"round":1,"start":1,"rank":1,"size":2,"epoch":1,"cursor":0,"indices":[1, 2')
    report = check(tmp_path)
    assert report.ok and report.torn == 1


def test_a_line_that_is_cut_short_where_it_counts_is_missed(tmp_path):
    write(tmp_path)
    lines = (tmp_path / "w0.jsonl").read_text().splitlines()
    lines[3] = lines[3][:len(lines[3]) // 2]
    (tmp_path / "w0.jsonl").write_text("\n".join(lines))
    report = check(tmp_path)
    assert report.torn == 1 and report.missing == 4


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", '{"kind": "used"}', '{"kind": "committed", "step": "x"}',
                                  '{"kind": "used", "step": 1, "round": 1, "start": 1, "rank": 0, "size": 1, '
                                  '"epoch": 0, "cursor": 0, "indices": {"a": 1}}'])
def test_nonsense_is_counted(line):
    assert parse([line]).torn == 1


def test_no_ledger(tmp_path):
    assert check(tmp_path / "nowhere").verdict == "the ledger is empty"


def test_weights_are_not_in_the_ledger(tmp_path):
    write(tmp_path, weighted=True)
    records = ledger.read(tmp_path)
    assert sampler_of(records) is None and not check(tmp_path).ok
    assert audit(records, ByLedger(records)).ok


def test_a_hundred_thousand_lines_take_seconds(tmp_path):
    sampler = GlobalSampler(4000, 64, 0)
    write(tmp_path, steps=range(1, 12_501), size=4, sampler=sampler)
    started = time.perf_counter()
    report = check(tmp_path)
    assert report.ok and report.steps == 12_500
    assert time.perf_counter() - started < 30  # some 2 s
