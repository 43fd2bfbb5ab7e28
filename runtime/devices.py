"""Several devices in one machine: a process each, which take their images from one queue."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from ..contract.closing import Closing
from ..contract.cores import usable_cores
from ..contract.errors import UserError
from ..contract.log import log
from ..engine.tensorrt_backend import cuda_devices
from .digest import digest_if_there, require_unchanged
from .pipeline_options import writers_for
from .plan import Task
from .stop import SIGNALS
from .temporaries import remove_temporaries_of
from .trace import NO_TRACE
from .work import Outcome, OutputError, PredictOptions
from .worker import EngineOptions, Message, Opened, Want, Warned, serve

CHUNK = 8
"""Images that a worker is given at once, fewer near the end: a slow device keeps few of them."""

TICK = 0.2
"""Seconds after which a wish to stop is seen at the latest."""

GRACE = 10.0
"""Seconds that a worker has for its end once its pipes are closed."""

REPLACEMENTS = 3
"""Processes in a row that are started for the last that died, with no image done by any of them."""

EXPECTED = "numbers of CUDA devices (0,1), all, or cpu:N for N processes on the CPU"


def devices_from_text(text: str) -> list[str]:
    """`0,1`, `all`, `cpu:4` or `cpu,cpu` → a device for each process, as open_engine takes it."""
    if text == "all":
        found = [f"cuda:{index}" for index in range(cuda_devices())]
        if not found:
            raise UserError(
                "no CUDA device is here",
                seen=f"--devices {text}",
                hint=f"--devices cpu:{usable_cores()}   or unetrt doctor",
            )
        return found
    devices: list[str] = []
    for part in text.split(","):
        cpus = re.fullmatch(r"cpu(?::([1-9]\d{0,3}))?", part)
        if cpus:
            devices += ["cpu"] * int(cpus[1] or 1)
        elif re.fullmatch(r"(cuda:)?\d+", part):
            devices.append(f"cuda:{int(part.removeprefix('cuda:'))}")
        else:
            raise UserError(
                f"no such devices: {text}", seen=repr(part), expected=EXPECTED, hint="unetrt doctor"
            )
    return devices


def _model_of(opened: Opened) -> tuple[object, ...]:
    """What all devices must have opened. PyTorch's precision is the device's: TF32 or fp32."""
    precision = "" if opened.backend == "torch" else opened.precision
    return opened.spec, opened.backend, precision


class _Worker:
    """A process and what it holds: images that it was given and has said nothing of yet."""

    def __init__(self, options: EngineOptions, device: str, threads: int) -> None:
        self.device, self.held = device, dict[Task, None]()
        self.opened = self.wants = False
        self.error: UserError | None = None
        context = multiprocessing.get_context("spawn")
        inbox, self._inbox = context.Pipe(duplex=False)
        self.outbox, outbox = context.Pipe(duplex=False)
        arguments = (options, device, threads, inbox, outbox)
        self.process = context.Process(target=serve, args=arguments, name=f"unetrt {device}")
        self.process.start()
        # With the only other ends gone, the end of the process is the end of the pipe.
        inbox.close()
        outbox.close()

    def send(self, message: PredictOptions | list[Task] | None) -> None:
        with suppress(OSError):  # it has died: its own pipe says so
            self._inbox.send(message)

    def give(self, tasks: list[Task]) -> None:
        self.wants = False
        self.held.update(dict.fromkeys(tasks))
        self.send(tasks)

    def receive(self) -> Message | None:
        """None at its end."""
        try:
            message: Message = self.outbox.recv()
        except (EOFError, OSError):
            return None
        return message

    def end(self) -> None:
        """Wait for the process, which has nobody to talk to any more; twice is harmless."""
        self._inbox.close()
        self.outbox.close()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if self.process.exitcode:  # what it was writing when it was killed
            remove_temporaries_of({path for task in self.held for path in task.files})

    @property
    def last_words(self) -> str:
        if self.error is not None:
            return self.error.reason
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class Workers(Closing):
    """The crew of a job on several devices; `with` ends its processes.

    An image is with one worker at a time. What a worker that dies had not finished comes last, one
    image at a time. The last worker that dies is started again, as it may be an image that kills.
    Raises UserError when the model cannot be opened on one of the devices, or when that is no use.
    """

    def __init__(
        self,
        options: EngineOptions,
        devices: Sequence[str],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start a process a device; return as soon as one of them has opened the model.

        Raises KeyboardInterrupt once stop() is true, as there is nothing to finish yet.
        """
        self._stopping = False
        self._model, self._digest = options.model, digest_if_there(options.model)
        self._warned: set[str] = set()
        self._suspects: deque[Task] = deque()
        self._deaths: Counter[Task] = Counter()
        self._threads = max(1, usable_cores() // len(devices))
        self._options, self._spare = options, REPLACEMENTS
        self._workers: list[_Worker] = []
        self._dead: _Worker | None = None
        self._first: Opened | None = None
        try:
            with _signals_held_back():
                for device in devices:
                    self._workers.append(_Worker(options, device, self._threads))
            self._alive = list(self._workers)
            while self._first is None:
                if not self._alive:
                    raise self._all_dead()
                if stop():
                    raise KeyboardInterrupt
                list(self._collect())
        except BaseException:
            self.close()
            raise

    @property
    def opened(self) -> Opened:
        """What the first worker has opened, and the others too."""
        if self._first is None:
            raise RuntimeError("no worker has opened the model")
        return self._first

    @property
    def label(self) -> str:
        devices = " ".join(worker.device for worker in self._workers)
        return f"{self.opened.backend} {self.opened.precision}, a process each on {devices}"

    def write_masks(
        self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """As work.write_masks, once: at its end the workers end too."""
        left = deque(tasks)
        share = self._share_of(options)
        for worker in self._alive:
            worker.send(share)
        try:
            while (left or self._suspects or self._held()) and not stop():
                if not self._alive:
                    self._replace(share)
                self._hand_out(left)
                yield from self._collect()
            if left or self._suspects or self._held():
                yield from self._finish()
        finally:
            self.close()

    def _share_of(self, options: PredictOptions) -> PredictOptions:
        """The job as one worker sees it, with its part of the cores."""
        threads = options.pipeline.load_threads or self._threads
        pipeline = replace(
            options.pipeline,
            load_threads=threads,
            write_threads=min(options.pipeline.write_threads, writers_for(threads)),
            memory=options.pipeline.memory // len(self._workers),
            trace=NO_TRACE,
        )
        return replace(options, journal=None, pipeline=pipeline)

    def _held(self) -> bool:
        return any(worker.held for worker in self._alive)

    def _hand_out(self, left: deque[Task]) -> None:
        for worker in self._alive:
            if not worker.wants:
                continue
            if self._deaths.keys() & worker.held.keys():
                worker.give([])
            elif left:
                count = max(1, min(CHUNK, len(left) // (4 * len(self._alive))))
                worker.give([left.popleft() for _ in range(min(count, len(left)))])
            elif worker.held:
                worker.give([])  # run what waits for a full batch; more may come back later
            elif self._suspects:  # last: one that kills is to cost no other image
                worker.give([self._suspects.popleft()])  # alone: who dies of it is known

    def _replace(self, share: PredictOptions) -> None:
        """Start a process in place of the last that has died, which may have been an image's fault.

        Raises UserError where some have died one after the other and none has done an image.
        """
        if self._dead is None or not self._spare:
            raise self._all_dead()
        self._spare -= 1
        log.warning("no worker is left: another one starts on %s", self._dead.device)
        with _signals_held_back():
            worker = _Worker(self._options, self._dead.device, self._threads)
        self._workers[self._workers.index(self._dead)] = worker
        self._alive = [worker]
        worker.send(share)

    def _all_dead(self) -> UserError:
        dead = self._dead
        return (dead and dead.error) or UserError(
            "every worker has died",
            seen=dead and dead.last_words,
            expected="one at least that lives",
            hint="run the same command again: what is in the journal is kept",
        )

    def _finish(self) -> Iterator[Outcome]:
        """Let every worker finish what its engine has begun; one without an engine has nothing."""
        self._stopping = True
        self._alive = [worker for worker in self._alive if worker.opened]
        for worker in self._alive:
            worker.send(None)
        while self._alive:
            yield from self._collect()

    def _collect(self) -> Iterator[Outcome]:
        """The outcomes among what the workers have said."""
        ready = wait([worker.outbox for worker in self._alive], TICK)
        for worker in [worker for worker in self._alive if worker.outbox in ready]:
            message = worker.receive()
            if message is None:
                yield from self._lose(worker)
            elif isinstance(message, Outcome):
                worker.held.pop(message.task, None)
                self._spare = REPLACEMENTS
                yield message
            elif isinstance(message, Want):
                worker.wants = True
            elif isinstance(message, Opened):
                self._open(worker, message)
            elif isinstance(message, Warned):
                self._warn(message.text)
            elif isinstance(message, OutputError) or not worker.opened:
                raise message  # the others would meet the same
            else:
                worker.error = message

    def _open(self, worker: _Worker, opened: Opened) -> None:
        worker.opened = True
        require_unchanged(self._model, self._digest)
        first = self._first = self._first or opened
        if _model_of(opened) != _model_of(first):
            raise UserError(
                f"{worker.device} opened another model than the other devices",
                seen=opened.label,
                expected=first.label,
                hint="leave the model alone while a job runs",
            )

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def _lose(self, worker: _Worker) -> Iterator[Outcome]:
        """Take back what a worker that has ended was given.

        An image that a second worker dies of, while it holds no other, is a failure: it would kill
        them all.
        """
        self._alive.remove(worker)
        self._dead = worker
        worker.end()
        if self._stopping and worker.error is None and worker.process.exitcode == 0:
            return
        self._deaths.update(list(worker.held))
        found = [task for task in worker.held if len(worker.held) == 1 < self._deaths[task]]
        self._suspects.extend(task for task in worker.held if task not in found)
        text = "a worker on %s has died (%s) and leaves %d images; workers that go on: %d"
        log.warning(text, worker.device, worker.last_words, len(worker.held), len(self._alive))
        for task in found:
            yield Outcome(task, f"two processes died while they worked on it ({worker.last_words})")

    def close(self) -> None:
        """End every process; twice is harmless."""
        self._alive = []
        for worker in self._workers:
            worker.send(None)
            if not worker.opened:  # it may take long to open the model, for nothing
                worker.process.kill()
        while self._workers:
            self._workers.pop().end()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that start here are born deaf to them, until they say themselves what to do.

    Ours come when they have started. The tracker starts first: it would let them through.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
