"""Run by `accelerate launch`: a tiny training whose log the test compares.

Arguments: the run's folder; the step in which the second process is asked to stop, or -1.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from accelerate import PartialState

from selfsame.training.loop import train
from selfsame.training.run import Batch
from tests.training.test_loop import batch_at, net, objective, run

if __name__ == "__main__":
    folder, stop_in = Path(sys.argv[1]), int(sys.argv[2])
    rank = int(os.environ["RANK"])

    def batch_or_signal(step: int) -> Batch:
        if step == stop_in and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_at(step)

    try:
        train(run(folder, steps=6, log_every=1), net(), objective, batch_or_signal)
        ended = "done"
    except KeyboardInterrupt:
        ended = "stopped"
    (folder / f"rank{rank}").write_text(f"{PartialState().num_processes} {ended}")
