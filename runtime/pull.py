"""Rows of Ray Data taken in a thread, so that a wish to stop is heard while none comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

TICK = 0.2
"""Seconds after which a wish to stop is seen at the latest."""

GRACE = 5.0
"""Seconds that Ray has at a stop to come to an end by itself."""

AHEAD = 32
"""Rows held, at most."""

WAIT = object()
"""What Puller gives where no row has come for a TICK."""


class Puller:
    """Takes a data set's rows in a thread: to wait for the next one may take minutes."""

    def __init__(self, rows: Any) -> None:
        self._found: queue.Queue[Any] = queue.Queue(maxsize=AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._pull, args=(rows,), name="pull", daemon=True)
        self._thread.start()

    def _pull(self, rows: Any) -> None:
        try:
            for row in rows.iter_rows():
                if not self._put(row):
                    return
        except Exception as error:  # noqa: BLE001  raised where the rows are taken
            self._put(error)
        else:
            self._put(None)

    def _put(self, row: Any) -> bool:
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._found.put(row, timeout=TICK)
                return True
        return False

    def next(self) -> Any:
        """A row, WAIT, or None at the end. Raises what Ray has raised."""
        try:
            row = self._found.get(timeout=TICK)
        except queue.Empty:
            return WAIT
        if isinstance(row, Exception):
            raise row
        return row

    def held(self) -> Iterator[Any]:
        """Rows that have come and were not taken; none is fetched meanwhile, or it never ended."""
        self._ended.set()
        with suppress(queue.Empty):
            while True:
                row = self._found.get_nowait()
                if row is not None and not isinstance(row, Exception):
                    yield row

    def end(self) -> bool:
        """Take no more rows, which ends what still runs; False where it still waits for one."""
        self._ended.set()
        self._thread.join(GRACE)
        return not self._thread.is_alive()
