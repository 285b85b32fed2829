"""One thread that judges new references beside the running loop.

Only the newest reference that waits is of interest: a policy that floods the controller has its
older ones superseded, never queued.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from niaf_field import FieldError, Reference
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.planning import Plan, Snapshot

Planning = Callable[[Snapshot, float, Reference, float], Plan]


@dataclass(frozen=True)
class Rejection:
    """The message cannot become a reference: number of the reason and one sentence."""

    reason: int
    text: str


@dataclass(frozen=True)
class Job:
    """A reference to judge. ``build`` decodes the message (in the worker's thread).

    ``now_s`` is when it arrived, ``lead_s`` how far ahead of the snapshot the hand-over is planned.
    """

    sequence: int
    snapshot: Snapshot
    now_s: float
    lead_s: float
    build: Callable[[], Reference | Rejection]
    attempt: int = 1


@dataclass(frozen=True)
class Judged:
    """What came of a job. ``reference_start_s`` is NaN when none was built."""

    job: Job
    outcome: Plan | Rejection
    reference_start_s: float = float("nan")


def superseded(job: Job) -> Judged:
    """The outcome of a job that a newer one pushed out before it was judged."""
    verdict = AdmissionVerdict(
        Verdict.REFUSED, Reason.SUPERSEDED, "a newer reference arrived before it was judged",
        job.sequence,
    )
    return Judged(job, Plan(verdict))


def judge(job: Job, plan: Planning) -> Judged:
    """Build and plan; whatever a malformed message raises becomes a rejection."""
    try:
        reference = job.build()
        if isinstance(reference, Rejection):
            return Judged(job, reference)
        planned = plan(job.snapshot, job.now_s, reference, job.lead_s)
    except FieldError as error:
        return Judged(job, Rejection(int(Reason.UNKNOWN_KIND), str(error)))
    except Exception as error:  # the next message must find the thread alive
        text = f"could not be judged: {type(error).__name__}: {error}"
        return Judged(job, Rejection(int(Reason.UNKNOWN_KIND), text))
    return Judged(job, planned, float(reference.start_s))


class AdmissionWorker:
    """Judges jobs in its own thread; ``finished`` hands the outcomes to the caller's thread."""

    def __init__(self, plan: Planning, prepare: Callable[[], object] = lambda: None) -> None:
        """``prepare`` runs first in the new thread (scheduling class)."""
        self._plan, self._prepare = plan, prepare
        self._wake = threading.Condition()
        self._waiting: Job | None = None
        self._stopping = False
        self._finished: deque[Judged] = deque()
        self._thread = threading.Thread(target=self._run, name="admission", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Judge ``job`` next; one that still waits is superseded."""
        with self._wake:
            if self._waiting is not None:
                self._finished.append(superseded(self._waiting))
            self._waiting = job
            self._wake.notify()

    def finished(self) -> list[Judged]:
        """Outcomes since the last call, oldest first. Costs nothing when there are none."""
        judged = []
        while self._finished:
            judged.append(self._finished.popleft())
        return judged

    def stop(self) -> None:
        """End the thread (waits for the job in hand)."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        self._prepare()
        while True:
            with self._wake:
                while self._waiting is None and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                job, self._waiting = self._waiting, None
            assert job is not None
            self._finished.append(judge(job, self._plan))
