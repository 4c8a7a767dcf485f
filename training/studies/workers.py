"""Units of work, run by processes of one thread each; each result is stored when it is ready."""

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
from training.studies.measurements import StudyData
from training.studies.stack import Variant
from training.studies.study import MAX_NETWORKS_PER_UNIT, Plan, Study, Task
from training.studies.table import ResultsTable, Row

_data: StudyData | None = None  # of a worker


@dataclass(frozen=True)
class WorkUnit:
    """Some variants of a study with one seed; run and stored as a whole."""

    study: str
    variants: tuple[Variant, ...]
    seed: int
    plan: Plan

    @property
    def networks(self) -> int:
        """Amount of work: the number of networks times their epochs."""
        return len(self.variants) * STUDIES[self.study].recipe(self.plan).epochs


def missing_units(studies: Sequence[Study], plan: Plan, table: ResultsTable) -> list[WorkUnit]:
    """List the units whose results the table lacks."""
    units = []
    for study in studies:
        for seed in range(plan.seeds):
            missing_variants = [variant for variant in study.variants if study.cell(variant, seed, plan) not in table]
            size = len(study.variants) if study.trained_together else MAX_NETWORKS_PER_UNIT
            selected = study.variants if study.trained_together and missing_variants else tuple(missing_variants)
            units += [WorkUnit(study.name, selected[i : i + size], seed, plan) for i in range(0, len(selected), size)]
    return units


def run_unit(unit: WorkUnit, data: StudyData) -> list[Row]:
    """Train and measure the variants of a unit."""
    study = STUDIES[unit.study]
    start = time.perf_counter()
    task = Task(data=data, recipe=study.recipe(unit.plan), variants=unit.variants, seed=unit.seed)
    cells = {variant.name: study.cell(variant, unit.seed, unit.plan) for variant in unit.variants}
    rows = [Row(*cells[name], metric, at, value) for name, metric, at, value in study.run(task)]
    seconds = (time.perf_counter() - start) / len(cells)
    return rows + [Row(*cell, "seconds", 0, seconds) for cell in cells.values()]


def run_units(
    units: Sequence[WorkUnit], load_data: Callable[[], StudyData], *, workers: int
) -> Iterator[tuple[WorkUnit, list[Row]]]:
    """Run units in worker processes; yield each unit with its rows when it is finished.

    The workers end when this process ends, for any reason.

    Args:
        units: the largest start first.
        load_data: loads the images in each process.
        workers: number of processes.
    """
    context = multiprocessing.get_context("spawn")
    largest_first = sorted(units, key=lambda unit: -unit.networks)
    with ProcessPoolExecutor(workers, context, initializer=_initialize_worker, initargs=(load_data,)) as pool:
        futures = {pool.submit(_run_in_worker, unit): unit for unit in largest_first}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _initialize_worker(load_data: Callable[[], StudyData]) -> None:
    global _data  # noqa: PLW0603 - state of a worker between units
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _data = load_data()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(unit: WorkUnit) -> list[Row]:
    if _data is None:
        raise RuntimeError("the worker was not initialized with images")
    return run_unit(unit, _data)
