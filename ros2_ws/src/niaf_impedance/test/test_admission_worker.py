"""The judging thread: every job gets an answer, whatever its message does."""

import time

from niaf_field import FieldError
from niaf_impedance.admission import Reason, Verdict
from niaf_impedance.admission_worker import AdmissionWorker, Job, Rejection


def outcomes_of(worker, builds):
    """(sequence, outcome) of jobs that are submitted one after the other."""
    answers = []
    for sequence, build in enumerate(builds):
        worker.submit(Job(sequence, None, 0.0, 0.0, build))
        end_s = time.monotonic() + 10.0
        while len(answers) <= sequence:
            assert time.monotonic() < end_s, f"no answer to job {sequence}"
            answers += [(j.job.sequence, j.outcome) for j in worker.finished()]
            time.sleep(0.001)
    return answers


def test_whatever_a_message_raises_is_named_and_the_next_one_is_judged():
    def fail(error):
        raise error

    worker = AdmissionWorker(lambda *_: None)
    try:
        answers = outcomes_of(worker, [
            lambda: fail(ValueError("17 is not a number")),
            lambda: fail(FieldError("gamma is missing")),
            lambda: Rejection(7, "no"),
        ])
    finally:
        worker.stop()
    texts = [outcome.text for _, outcome in answers]
    assert [sequence for sequence, _ in answers] == [0, 1, 2]
    assert texts[0] == "could not be judged: ValueError: 17 is not a number"
    assert texts[1:] == ["gamma is missing", "no"]


def test_only_the_newest_job_that_waits_is_judged():
    judged = []

    def slow():
        time.sleep(0.2)
        return Rejection(1, "slow")

    worker = AdmissionWorker(lambda *_: None)
    try:
        worker.submit(Job(1, None, 0.0, 0.0, slow))
        time.sleep(0.05)
        for sequence in (2, 3, 4):
            worker.submit(Job(sequence, None, 0.0, 0.0, lambda: Rejection(2, "new")))
        end_s = time.monotonic() + 10.0
        while len(judged) < 4:
            assert time.monotonic() < end_s
            judged += worker.finished()
            time.sleep(0.01)
    finally:
        worker.stop()
    by_sequence = {j.job.sequence: j.outcome for j in judged}
    assert isinstance(by_sequence[4], Rejection)
    for sequence in (2, 3):
        verdict = by_sequence[sequence].verdict
        assert (verdict.verdict, verdict.reason) == (Verdict.REFUSED, Reason.SUPERSEDED)
