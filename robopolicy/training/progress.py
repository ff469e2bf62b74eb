"""Progress of a run: a bar on a terminal, otherwise lines in the log."""

import logging
import sys
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robopolicy.training.callbacks import LOG_EVERY, RunKeeper
from robopolicy.training.module import PolicyTraining

LOG = logging.getLogger(__name__)


class ShownProgress(Callback):
    """A bar on a terminal, updated every `LOG_EVERY` steps; otherwise a line in the log at every validation."""

    def __init__(self, keeper: RunKeeper, max_steps: int) -> None:
        self.keeper, self.max_steps = keeper, max_steps
        self.every = LOG_EVERY if sys.stdout.isatty() else keeper.settings.valid_every
        self._shown = 0
        self._bar = Progress(
            TextColumn("train {task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            refresh_per_second=2,
            disable=not sys.stdout.isatty(),
        )

    def on_train_start(self, trainer: Trainer, pl_module: PolicyTraining) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("train", total=self.max_steps, completed=trainer.global_step, figures="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Update the bar or log a line, if due."""
        step = trainer.global_step
        if step == self._shown or not (step % self.every == 0 or trainer.should_stop) or not trainer.is_global_zero:
            return
        self._shown = step
        if self._bar.disable:
            LOG.info("step %6d of %d   %s", step, self.max_steps, _figures(self.keeper))
        else:
            self._bar.update(self._task, completed=step, figures=_figures(self.keeper))

    def teardown(self, *_: Any, **__: Any) -> None:
        """Restore the terminal, also after an error."""
        self._bar.stop()


def _figures(keeper: RunKeeper) -> str:
    """The latest losses and success rate, and the time per step."""
    last = {kind: rows[-1] for kind, rows in keeper.history.items() if rows}
    figures = [f"{kind} {last[kind].get('loss', last[kind].get('rate')):.4g}" for kind in last]
    figures.append(f"{keeper.timer.step_ms:.1f} ms/step, {100 * keeper.timer.data_fraction:.1f} % data")
    return "  ".join(figures)
