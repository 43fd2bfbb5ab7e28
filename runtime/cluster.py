"""A Ray cluster as the crew of a job: Ray Data streams, places, retries and holds back; not we."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..contract.closing import Closing
from ..contract.errors import UserError, first_line
from ..contract.log import log
from ..contract.modules import import_module
from ..engine.manifest import read_manifest
from ..engine.onnxfile import is_onnx
from .cluster_work import (
    ROW,
    InferRows,
    absolute_task,
    another_code,
    code_digest,
    load_row,
    open_once,
    packed,
    rows_for,
    ship_model,
    unpacked,
    write_row,
)
from .plan import Task
from .pull import TICK, WAIT, Puller
from .stop import SIGNALS
from .temporaries import remove_temporaries_of
from .trace import NO_TRACE
from .work import Outcome, PredictOptions
from .worker import EngineOptions, Opened, travelling

BLOCK = 32
"""Images in one piece of work of Ray's, which is also what a killed process loses at most."""

CONNECT_SECONDS = 10.0
EXPECTED = "HOST:6379 of a head node, or local"

RETRIES = 3
"""Of what a process was doing when it died: what kills each of them would be tried for ever."""

ACTOR_RETRIES = 20
"""Of a batch: until Ray misses a machine that is gone, up to a minute, each try there fails.

Three were used up in 26 s; a batch that kills its engine each time ends the job in two minutes.
"""

GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "torch")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where a job runs, and on how many engines.

    address: of a running cluster; None takes the one of RAY_ADDRESS or of this machine, else
    starts one here for the job. engines: None is one a GPU, on CPUs one a machine.
    device: "cpu", "cuda", or "auto": a GPU where the cluster has one and the model can use it.
    """

    address: str | None = None
    engines: int | None = None
    device: str = "auto"


class Cluster(Closing):
    """The crew of a job on a Ray cluster.

    Images are loaded by tasks, inferred by actors with an engine each, written by tasks. A task or
    an actor that dies is started again by Ray and its images are done again; a mask is written
    whole or not at all, and reported once.
    """

    def __init__(
        self,
        options: EngineOptions,
        cluster: ClusterOptions,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect, send the model into the cluster and let one of its machines open it.

        Raises UserError where there is no such cluster, or as open_engine does; KeyboardInterrupt
        once stop() is true, as there is nothing to finish yet.
        """
        _refuse_index(cluster.device)
        # A thread of Ray Data's that goes on after the end would start a cluster of its own.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        ray = self._ray = import_module("ray")
        import_module("ray.data")
        self._engine_options = options
        self._connected = False
        try:
            _connect(ray, cluster.address)
            self._connected = True
            self._use_resources(ray.nodes(), cluster)
            self._model = ray.put(ship_model(options.model))
            self.opened: Opened = self._ask_for_model(stop)
        except BaseException:
            self.close()
            raise

    def _use_resources(self, nodes: list[dict[str, Any]], cluster: ClusterOptions) -> None:
        """Divide what the cluster has: half of the CPUs' shares are for loading and writing."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        cpus = sum(node.get("CPU", 0.0) for node in alive)
        gpus = int(sum(node.get("GPU", 0.0) for node in alive))
        use_gpu = cluster.device.startswith("cuda") or (
            cluster.device == "auto" and gpus > 0 and _runs_on_gpu(self._engine_options.model)
        )
        if use_gpu and not gpus:
            raise UserError(
                "the cluster has no GPU",
                seen=f"{len(alive)} machines, {cpus:.0f} CPUs, 0 GPUs",
                hint="--device cpu",
            )
        self.engines = cluster.engines or (gpus if use_gpu else len(alive))
        self.device = "cuda" if use_gpu else "cpu"
        largest = max(node.get("CPU", 1.0) for node in alive)
        self._threads = max(1, int(min(largest, cpus / self.engines)))
        # An engine takes its half for as long as the job runs: a task that asked for more than
        # the other half of a machine would wait for ever.
        self._task_cpus = min(1.0, largest / 2)
        self._shares: dict[str, Any] = {"num_cpus": min(largest, cpus / self.engines) / 2}
        if use_gpu:
            self._shares = {"num_cpus": min(1.0, cpus / self.engines / 2), "num_gpus": 1}

    def _ask_for_model(self, stop: Callable[[], bool]) -> Opened:
        ray = self._ray
        ask = ray.remote(_told).options(**self._shares, max_retries=0)
        given = (self._model, self._engine_options, self.device, self._threads)
        told = ask.remote(code_digest(), *given)
        with self._ray_errors(), self._code_errors():
            while not ray.wait([told], timeout=TICK)[0]:
                if stop():
                    raise KeyboardInterrupt
            found: tuple[Opened, list[str]] | UserError = ray.get(told)
        if isinstance(found, UserError):
            raise found
        opened, warnings = found
        for text in warnings:
            log.warning("%s", text)
        return opened

    @property
    def label(self) -> str:
        what = f"{self.opened.backend} {self.opened.precision}"
        return f"{what}, engines in Ray: {self.engines} on {self.device}"

    def write_masks(
        self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """As work.write_masks; what is in flight when it stops is dropped, to be done again."""
        if not tasks:
            return
        pipeline = replace(options.pipeline, trace=NO_TRACE)
        options = replace(options, journal=None, pipeline=pipeline)
        task_of = {absolute_task(task): task for task in tasks}
        puller = Puller(self._dataset(list(task_of), options))
        try:
            while not stop():
                with self._ray_errors():
                    row = puller.next()
                if row is None:
                    return
                if row is not WAIT:
                    yield self._checked(unpacked(row[ROW]), task_of)
            for row in puller.held():  # their masks are in place
                yield self._checked(unpacked(row[ROW]), task_of)
        finally:
            if not puller.end():  # it waits for a row that may take long
                logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)  # of what is cut off
                self.close()
            remove_temporaries_of({path for task in tasks for path in task.files})

    @staticmethod
    def _checked(outcome: Any, task_of: dict[Task, Task]) -> Outcome:
        if isinstance(outcome, UserError):
            raise outcome
        found: Outcome = outcome
        return replace(found, task=task_of[found.task])

    @contextmanager
    def _code_errors(self) -> Iterator[None]:
        """What is raised where the cluster has no such function, or one of another version."""
        try:
            yield
        except (self._ray.exceptions.RaySystemError, TypeError) as error:
            raise another_code(first_line(_cause(error))) from error

    @contextmanager
    def _ray_errors(self) -> Iterator[None]:
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise UserError(
                "the Ray cluster could not do its work",
                seen=first_line(_cause(error)),
                expected="machines and processes that live",
                hint="run the same command again: what is in the journal is kept",
            ) from error

    def _dataset(self, tasks: Sequence[Task], options: PredictOptions) -> Any:
        data, spec = self._ray.data, self.opened.spec
        blocks = -(-len(tasks) // BLOCK)
        often: dict[str, Any] = {
            "num_cpus": self._task_cpus,
            "ray_remote_args_fn": lambda: {"max_retries": RETRIES},
        }
        model = partial(self._ray.get, self._model)
        given = (model, self._engine_options, options, self.device, self._threads)
        rows = data.from_items([packed(task) for task in tasks], override_num_blocks=blocks)
        with warnings.catch_warnings():
            # Retries by name are deprecated as well (2.60), and it is not the user's to change.
            warnings.filterwarnings("ignore", "`ray_remote_args", DeprecationWarning)
            rows = rows.map(partial(load_row, spec=spec, options=options), **often)
            rows = rows.map_batches(
                InferRows,
                fn_constructor_args=given,
                batch_size=rows_for(tasks, spec, options),
                batch_format="numpy",
                compute=data.ActorPoolStrategy(size=self.engines),
                ray_remote_args_fn=lambda: {"max_task_retries": ACTOR_RETRIES},
                **self._shares,
            )
            return rows.map(partial(write_row, spec=spec, options=options), **often)

    def close(self) -> None:
        """Leave the cluster; one that was started for this job ends. Twice is harmless."""
        if self._connected:
            self._connected = False
            self._ray.shutdown()


def _cause(error: BaseException) -> BaseException:
    """What an error of Ray's is about: its own words are a traceback of another process."""
    while cause := getattr(error, "cause", None) or error.__cause__:
        if not str(cause).strip():  # Ray Data's SystemException
            break
        error = cause
    return error


def _told(code: str, *arguments: Any) -> tuple[Opened, list[str]] | UserError:
    """A UserError as a value: Ray would wrap it and its traceback in an error of its own.

    code: the digest of who asks.
    """
    try:
        if code != code_digest():
            raise another_code("other sources than here")
        return open_once(*arguments)
    except UserError as error:
        return travelling(error)


def _runs_on_gpu(model: Path) -> bool:
    if model.is_dir():
        return read_manifest(model).backend in GPU_BACKENDS
    return not is_onnx(model)


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the rest is in its own log files
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _refuse_client(address or os.environ.get("RAY_ADDRESS", ""))
    hint = "ray start --head   starts one; --ray local   is one for this job alone"
    with _own_signals():
        try:
            if _require_listener(address):
                hint = "RAY_AUTH_MODE=token unetrt predict …   where the cluster asks for a token"
            ray.init(
                address=address,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise UserError(
                f"no Ray cluster at {address or 'this machine'}",
                seen=first_line(error),
                expected=EXPECTED,
                hint=hint,
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _refuse_index(device: str) -> None:
    """Ray hands its GPUs out and shows each process its own: a number would be passed over."""
    if ":" in device:
        raise UserError(
            "the devices of a cluster are given out by Ray",
            seen=f"--device {device}",
            expected="auto, cpu or cuda",
            hint="--device cuda   and, to leave GPUs out, CUDA_VISIBLE_DEVICES=1 ray start …",
        )


def _refuse_client(address: str) -> None:
    """Ray Data runs where the driver is, and a client's is on the other side."""
    if address.startswith("ray://"):
        raise UserError(
            f"a job cannot run through Ray's client, {address}",
            seen="an address that begins with ray://",
            expected=EXPECTED,
            hint="--ray HOST:6379   on a machine of the cluster",
        )


def _require_listener(address: str | None) -> bool:
    """Raise OSError where nobody listens at HOST:PORT: Ray would go on asking for minutes.

    False for what is no such address.
    """
    place = re.fullmatch(r"(.+):(\d+)", address or "")
    if place:
        socket.create_connection((place[1], int(place[2])), CONNECT_SECONDS).close()
    return place is not None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray answers SIGTERM by itself once it has begun: the job has its own answer."""
    before = {name: signal.getsignal(name) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
