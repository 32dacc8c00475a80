"""Run by `accelerate launch`: a tiny training whose log the test compares. Argument: the run's folder."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate import PartialState

from selfsame.training.loop import train
from tests.training.test_loop import batch_at, net, objective, run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train(run(folder, steps=6, log_every=1), net(), objective, batch_at)
    state = PartialState()
    (folder / f"rank{state.process_index}").write_text(str(state.num_processes))
