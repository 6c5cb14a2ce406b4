"""Units on Ray actors, each of which loads the model once and keeps it.

An actor that dies is started again by Ray and its unit with it; a unit that kills its actor every time is reported
as failed, and the others go on. The dashboard stays off, and a cluster that is started here listens on the loopback
address alone: whoever reaches a cluster can run code on it, and older versions of Ray ask for no token. It reports no
usage to the makers of Ray.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, final

import torch

from mmlens.errors import ConfigError, SweepError
from mmlens.model import HookedVLM
from mmlens.sweeps.unit import Job, Outcome, Unit

_LOOPBACK = "127.0.0.1"
_LOCAL_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Read by Ray when it is imported. Off, a node keeps to the loopback address, as it does on macOS and Windows; on Linux
it would replace that address by one that others can reach, and listen on every interface."""


@final
@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Units on the actors of a Ray cluster (``pip install 'mmlens[ray]'``).

    Attributes:
        n_actors: how many hold the model at the same time.
        num_gpus: of each actor; a fraction shares one; 0 = CPU.
        num_cpus: of each actor.
        device: where actors put the model; None for ``cuda`` with GPUs, else ``cpu``.
        retries: how often a unit is tried again whose actor died.
        address: of a running cluster; None starts one on this machine for the time of the sweep, unless one is
            connected already.
        init: further arguments of ``ray.init`` for a cluster that is started here.
    """

    n_actors: int = 2
    num_gpus: float | int = 0
    num_cpus: float | int = 1
    device: str | None = None
    retries: int = 2
    address: str | None = None
    init: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Rejects numbers that no cluster can have."""
        if self.n_actors < 1 or self.retries < 0 or min(self.num_gpus, self.num_cpus) < 0:
            raise ConfigError(
                f"n_actors={self.n_actors} must be at least 1, num_gpus={self.num_gpus}, num_cpus={self.num_cpus} and "
                f"retries={self.retries} at least 0."
            )

    def map(self, job: Job, units: Iterable[Unit], model: HookedVLM) -> Iterator[tuple[Unit, Outcome]]:
        """As ``Executor.map``, in the order in which units finish.

        Actors load ``job.model_id`` in the dtype and with the number of threads of ``model``: equal threads give
        equal sums, bit for bit.
        """
        ray = _ray(local=self.address is None)
        told = {
            "model_id": job.model_id,
            "revision": model.revision,
            "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
            "device": self.device or ("cuda" if self.num_gpus else "cpu"),
            "threads": torch.get_num_threads(),
        }
        with self._cluster(ray):
            options = {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus, "max_restarts": -1}
            remote = ray.remote(ModelActor).options(max_task_retries=self.retries, **options)
            actors = [remote.remote(**told) for _ in range(self.n_actors)]
            try:
                _check_weights(ray, actors, job)
                yield from _drained(ray, actors, ray.put(job), units)
            finally:
                for actor in actors:
                    ray.kill(actor)

    @contextmanager
    def _cluster(self, ray: Any) -> Iterator[None]:
        """A connection to the cluster, closed at the end if it was opened here."""
        if ray.is_initialized():
            yield
            return
        own = {
            "num_cpus": max(1, round(self.n_actors * self.num_cpus)),
            "include_dashboard": False,
            "_node_ip_address": _LOOPBACK,
        }
        if self.num_gpus:
            own["num_gpus"] = max(1, round(self.n_actors * self.num_gpus))
        where = {"address": self.address} if self.address else {"address": "local", **own, **self.init}
        ray.init(log_to_driver=False, **where)
        try:
            if not self.address:
                _check_loopback(ray)
            yield
        finally:
            ray.shutdown()


class ModelActor:
    """A worker that loads the model once and computes units with it."""

    def __init__(self, model_id: str, revision: str | None, dtype: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = HookedVLM.from_pretrained(
            model_id, revision=revision, dtype=getattr(torch, dtype), device=device
        )

    def fingerprint(self) -> str:
        """Digest of the weights that it holds."""
        return self._model.weight_fingerprint()

    def compute(self, job: Job, unit: Unit) -> Outcome:
        """Runs one unit."""
        return job.compute(self._model, unit)


def _ray(local: bool) -> Any:
    try:
        if local:
            os.environ.setdefault(_LOCAL_ONLY, "0")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        return import_module("ray")
    except ImportError as error:
        raise SweepError(
            f"RayExecutor needs Ray ({error}): pip install 'mmlens[ray]', or sweep without executor=, which needs "
            "nothing and resumes the same folder."
        ) from error


def _check_loopback(ray: Any) -> None:
    found = ray.util.get_node_ip_address()
    if found != _LOOPBACK:
        raise SweepError(
            f"Ray would listen on {found}, for others to reach: it was imported before mmlens could tell it not to. "
            f"Set {_LOCAL_ONLY}=0 before Python starts or import it later; or call ray.init yourself, and the sweep "
            "runs there."
        )


def _check_weights(ray: Any, actors: list[Any], job: Job) -> None:
    """Actors could load the model, and it is the same one."""
    try:
        found = set(ray.get([actor.fingerprint.remote() for actor in actors]))
    except ray.exceptions.RayError as error:
        raise SweepError(
            f"the actors could not load {job.model_id!r}: {error}. Give a name or path that every machine of the "
            "cluster can load with HookedVLM.from_pretrained."
        ) from error
    if found != {job.fingerprint}:
        raise SweepError(
            f"the actors loaded other weights under {job.model_id!r} ({', '.join(sorted(found))}) than the model given "
            f"({job.fingerprint}). Save the model, and sweep it by that path."
        )


def _drained(ray: Any, actors: list[Any], job: Any, units: Iterable[Unit]) -> Iterator[tuple[Unit, Outcome]]:
    """One unit per actor at a time, so that a unit that kills its actor takes no other with it."""
    waiting, running = iter(units), {}

    def give(actor: Any) -> None:
        unit = next(waiting, None)
        if unit is not None:
            running[actor.compute.remote(job, unit)] = (actor, unit)

    for actor in actors:
        give(actor)
    while running:
        ready, _ = ray.wait(list(running), num_returns=1)
        actor, unit = running.pop(ready[0])
        try:
            outcome = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            outcome = Outcome(
                shard=None, reason=f"{type(error).__name__}: the worker did not survive it: {first}"
            )
        give(actor)
        yield unit, outcome
