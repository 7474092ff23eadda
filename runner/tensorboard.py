"""`--tensorboard`: the metrics and samples of a run as event files, too."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.text import visible
from shared.errors import UserError

SECONDS = 10
"""Between writes to the disk: somebody may be watching."""
QUEUE = 1000
"""Events that may wait for the disk before training does."""


def require_tensorboard() -> None:
    """UserError unless tensorboardX is installed."""
    if find_spec("tensorboardX") is None:
        raise UserError(
            "--tensorboard needs tensorboardX, not installed here. Install with: pip install "
            "'rosetta-rnn[tensorboard]' (in a checkout: pip install -c constraints.txt -e '.[tensorboard]')."
        )


class EventFiles:
    """What TensorBoard reads: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, step: int, resumed: bool) -> None:
        """`step` is where the run stands: whatever an earlier process logged beyond it is taken back."""
        from tensorboardX import SummaryWriter

        self.logged = False
        # Names hold the second, and a run may be resumed within it: hence the suffix.
        how: dict[str, Any] = {"flush_secs": SECONDS, "max_queue": QUEUE, "filename_suffix": f".{step:09d}"}
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if resumed else None, **how)

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl: each number is a scalar, "<name>/<split>"."""
        for line in lines:
            self.logged = True
            for name in line.keys() - {"step", "epoch", "split"}:
                self._writer.add_scalar(f"{name}/{line['split']}", line[name], line["step"])

    def write_samples(self, texts: Mapping[float, str], step: int) -> None:
        """Texts by temperature; a finished run that is resumed, and has nothing left to do, has them already."""
        for temperature, text in texts.items() if self.logged else ():
            # TensorBoard renders Markdown; indented, a text is shown as it is.
            indented = "".join(f"    {line}\n" for line in visible(text).split("\n"))
            self._writer.add_text(f"sample/temperature_{temperature}", indented, step)

    def close(self) -> None:
        """Write what still waits."""
        self._writer.close()
