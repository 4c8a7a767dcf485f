"""Units of work, done by processes of one thread each, and kept as soon as they are done."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from training.studies.catalogue import STUDIES
from training.studies.lab import Lab
from training.studies.stack import Variant
from training.studies.study import TOGETHER, Plan, Study, Task
from training.studies.table import Row, Table

_lab: Lab | None = None  # of a worker


@dataclass(frozen=True)
class Unit:
    """What is done, and then kept, as a whole: some variants of a study with a seed."""

    study: str
    variants: tuple[Variant, ...]
    seed: int
    plan: Plan

    @property
    def networks(self) -> int:
        """A measure of how long it takes: epochs of networks."""
        return len(self.variants) * STUDIES[self.study].recipe(self.plan).epochs


def missing(studies: Sequence[Study], plan: Plan, table: Table) -> list[Unit]:
    """List what the table lacks."""
    units = []
    for study in studies:
        for seed in range(plan.seeds):
            lacking = [variant for variant in study.variants if study.cell(variant, seed, plan) not in table]
            size = len(study.variants) if study.whole else TOGETHER
            wanted = study.variants if study.whole and lacking else tuple(lacking)
            units += [Unit(study.name, wanted[i : i + size], seed, plan) for i in range(0, len(wanted), size)]
    return units


def do(unit: Unit, lab: Lab) -> list[Row]:
    """Train and measure a unit's variants."""
    study = STUDIES[unit.study]
    start = time.perf_counter()
    task = Task(lab=lab, recipe=study.recipe(unit.plan), variants=unit.variants, seed=unit.seed)
    cells = {variant.name: study.cell(variant, unit.seed, unit.plan) for variant in unit.variants}
    rows = [Row(*cells[name], metric, at, value) for name, metric, at, value in study.run(task)]
    seconds = (time.perf_counter() - start) / len(cells)
    return rows + [Row(*cell, "seconds", 0, seconds) for cell in cells.values()]


def work(units: Sequence[Unit], open_lab: Callable[[], Lab], *, workers: int) -> Iterator[tuple[Unit, list[Row]]]:
    """Do units in processes of their own, and yield each with its rows as soon as it is done.

    The processes end with this one, however it ends.

    Args:
        units: the largest are begun first.
        open_lab: loads the images, in each process.
        workers: how many processes.
    """
    context = multiprocessing.get_context("spawn")
    largest_first = sorted(units, key=lambda unit: -unit.networks)
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(open_lab,)) as pool:
        futures = {pool.submit(_do, unit): unit for unit in largest_first}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin(open_lab: Callable[[], Lab]) -> None:
    global _lab  # noqa: PLW0603 - what a worker keeps between units
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _lab = open_lab()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(unit: Unit) -> list[Row]:
    if _lab is None:
        raise RuntimeError("a worker must begin with images")
    return do(unit, _lab)
