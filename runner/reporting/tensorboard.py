"""`--tensorboard`: the metrics and samples of a run as event files, too.

Events are written by the process itself, through tensorboardX' own pieces: its SummaryWriter leaves them to a thread
that a full disk ends unseen, and the training then waits for it forever.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.text import visible
from shared.errors import UserError
from shared.files import WriteError, reason

SECONDS = 10
"""Between writes to the disk: somebody may be watching."""


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
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder, self.logged = folder, False
        self._summary, self._event = summary, Event
        with self.writing():
            folder.mkdir(exist_ok=True)
            # Names hold the second, and a run may be resumed within it: hence the suffix.
            self._writer = EventsWriter(str(folder / "events"), f".{step:09d}")
            if resumed:
                self.add(step + 1, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl: each number is a scalar, "<name>/<split>"; an event has a time of its own."""
        with self.writing():
            for line in lines:
                self.logged = True
                for name in line.keys() - {"step", "epoch", "split", "seconds"}:
                    scalar = self._summary.scalar(f"{name}/{line['split']}", line[name])
                    self.add(line["step"], summary=scalar)
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def write_samples(self, texts: Mapping[float, str], step: int) -> None:
        """Texts by temperature; a finished run that is resumed, and has nothing left to do, has them already."""
        with self.writing():
            for temperature, text in texts.items() if self.logged else ():
                # TensorBoard renders Markdown; indented, a text is shown as it is.
                indented = "".join(f"    {line}\n" for line in visible(text).split("\n"))
                self.add(step, summary=self._summary.text(f"sample/temperature_{temperature}", indented))

    def close(self) -> None:
        """Write what still waits."""
        with self.writing():
            self._writer.close()

    def add(self, step: int, **content: Any) -> None:
        """An event; it waits in memory."""
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))

    def flush(self) -> None:
        """Write to the disk; where a kill cuts an event off, TensorBoard shows those before it."""
        with self.writing():
            self._writer.flush()
        self._flushed = time.monotonic()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """WriteError where the system refuses."""
        try:
            yield
        except OSError as error:
            raise WriteError(f"Cannot write event files into {self.folder}: {reason(error)}") from None
