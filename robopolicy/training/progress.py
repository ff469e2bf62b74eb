"""Progress of a run: a bar on a terminal, lines in a file."""

import logging
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robopolicy.training.callbacks import LOG_EVERY, RunKeeper
from robopolicy.training.module import PolicyTraining

LOG = logging.getLogger(__name__)


class LogProgress(Callback):
    """A line of the log at every validation; for a file, where a bar would be noise."""

    def __init__(self, keeper: RunKeeper, max_steps: int) -> None:
        self.keeper = keeper
        self.max_steps = max_steps
        self._shown = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log the progress."""
        step = trainer.global_step
        due = step % self.keeper.settings.valid_every == 0 or trainer.should_stop
        if not due or step == self._shown or not trainer.is_global_zero:
            return
        self._shown = step
        LOG.info("step %6d of %d   %s", step, self.max_steps, _figures(self.keeper))


class ConsoleProgress(Callback):
    """A rich progress bar, refreshed every `LOG_EVERY` steps; for a terminal."""

    def __init__(self, keeper: RunKeeper, max_steps: int) -> None:
        self.keeper = keeper
        self.max_steps = max_steps
        self._bar = Progress(
            TextColumn("train {task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            refresh_per_second=2,
        )

    def on_train_start(self, trainer: Trainer, pl_module: PolicyTraining) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("train", total=self.max_steps, completed=trainer.global_step, figures="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Update the bar every `LOG_EVERY` steps."""
        if trainer.global_step % LOG_EVERY and not trainer.should_stop:
            return
        self._bar.update(self._task, completed=trainer.global_step, figures=_figures(self.keeper))

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the terminal as it was, whatever ended the run."""
        self._bar.stop()


def _figures(keeper: RunKeeper) -> str:
    """The latest losses and success rate, and the time per step."""
    last = {kind: rows[-1] for kind, rows in keeper.history.items() if rows}
    figures = [f"{kind} {last[kind].get('loss', last[kind].get('rate')):.4g}" for kind in last]
    figures.append(f"{keeper.timer.step_ms:.1f} ms/step, {100 * keeper.timer.data_fraction:.1f} % data")
    return "  ".join(figures)
