"""Coverage of the prediction sets by feedback, with a state that all workers share and that outlives them."""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path

import numpy as np

from model import Artifact, find_calibration
from model.adaptive_conformal import METHODS
from model.artifact import write_atomically
from model.calibration import COVERAGES, Estimator, SetMethod
from model.coverage import Coverage, thresholds, tolerated_misses, true_scores
from service.inference.decision import Adaptation
from service.inference.predictor import ESTIMATORS
from service.monitoring.logs import LOGGER
from service.monitoring.prediction_log import UNKNOWN, PredictionLog, Records, key

Version = tuple[int, ...]
States = Mapping[Estimator, Coverage]

_FILE, _LOCK = "coverage.json", "coverage.lock"


class CoverageFile:
    """The state of one model at a time, in a file that all workers share.

    A state of another model, or one that can't be read, counts as none. So workers with different models discard each
    other's state, until a reload has reached all of them.

    Args:
        folder: folder shared by all workers; None to keep the state in this process.

    Raises:
        OSError: the folder can't be created.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._path = None if folder is None else str(folder / _FILE)  # a text: it is used for each prediction
        self._in_process = threading.Lock()
        self._kept: tuple[Version, str, States] = ((), "", {})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, model: str) -> States:
        """Read the state of a model by estimator; the file is read only if it has changed."""
        if self._path is not None and (version := _version(self._path)) != self._kept[0]:
            self._kept = (version, *_load(self._path))
        _, owner, states = self._kept
        return states if owner == model else {}

    @contextmanager
    def changing(self, model: str) -> Iterator[dict[Estimator, Coverage]]:
        """Yield the state of a model by estimator, to be changed; other workers wait until it is written."""
        with self._in_process, nullcontext() if self._folder is None else _locked(self._folder):
            owner, before = self._kept[1:] if self._path is None else _load(self._path)
            states = dict(before) if owner == model else {}
            yield states
            if owner != model or states != before:
                self._write(model, states)

    def _write(self, model: str, states: States) -> None:
        if self._path is None:
            self._kept = ((), model, states)
            return
        content = {"model": model, "states": {name: state.to_json() for name, state in states.items()}}
        try:
            write_atomically(Path(self._path), json.dumps(content).encode())
        except OSError as error:
            LOGGER.error("state of the coverage not written", extra={"fields": {"reason": str(error)}})


def _version(path: str) -> Version:
    """What changes whenever a file is replaced; empty without a file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - in half of the time of `Path.stat`
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _load(path: str) -> tuple[str, States]:
    """The model of the state, and the state; none if the file is missing or damaged."""
    try:
        content = json.loads(Path(path).read_bytes())
        stored = {name: content["states"].get(name) for name in ESTIMATORS}
        states = {name: Coverage.from_json(fields) for name, fields in stored.items() if fields is not None}
        return str(content["model"]), states
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        LOGGER.warning(
            "damaged state of the coverage: it starts anew", extra={"fields": {"file": _FILE, "reason": str(error)}}
        )
        return "", {}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it if this process is killed
        yield


class CoverageMonitor:
    """The coverage of one model's prediction sets by feedback.

    Args:
        file: keeps the state.
        artifact: the model.
        adaptive: whether prediction sets follow the feedback.

    Attributes:
        adaptive: whether prediction sets follow the feedback.
    """

    def __init__(self, file: CoverageFile, artifact: Artifact, *, adaptive: bool) -> None:
        self._file, self.adaptive = file, adaptive
        self._calibrations, self._classes = artifact.calibrations, len(artifact.classes)
        self._key, self._identity = key(artifact.sha256), _identity(artifact)
        images = artifact.card.get("data", {}).get("split", {}).get("calibration")
        self._tolerated_L = tolerated_misses(None if images is None else int(images))

    def begin(self) -> None:
        """Discard the state of another model, as this one now answers."""
        with self._file.changing(self._identity):
            pass

    def adaptation(self, estimator: Estimator, method: SetMethod, coverage: float) -> Adaptation | None:
        """How far a threshold has moved; None for a method whose thresholds don't follow feedback."""
        if method not in METHODS:
            return None
        state = self._file.read(self._identity).get(estimator)
        if state is None:
            return Adaptation(0, 0.0)
        return Adaptation(state.images, float(state.offsets_ML[METHODS.index(method), COVERAGES.index(coverage)]))

    def note_class(
        self, log: PredictionLog, condition: Callable[[Records], np.ndarray], image: int, true_class: int
    ) -> np.ndarray:
        """Set the outcomes of predictions of an image, as by `PredictionLog.note_class`, and count its coverage.

        An image counts once for each estimator, with its newest prediction and its first feedback: copies of an image
        are no independent evidence.

        Args:
            log: the recent predictions.
            condition: maps records to a boolean mask.
            image: hash of the image of all these records.
            true_class: index of its true class.
        """
        with self._file.changing(self._identity) as states:
            predictions = log.with_probabilities(
                lambda ring: (ring["image"] == image) & (ring["model"] == self._key), self._classes
            )
            outcomes = log.note_class(condition, true_class)
            for index, estimator in enumerate(ESTIMATORS):
                own = [(record, probs_C) for record, probs_C in predictions if record["estimator"] == index]
                meant = [(record, probs_C) for record, probs_C in own if condition(record)]
                if meant and all(record["outcome"] == UNKNOWN for record, _ in own):
                    self._count(states, estimator, *meant[-1], true_class)
        return outcomes

    def _count(
        self,
        states: dict[Estimator, Coverage],
        estimator: Estimator,
        record: Records,
        probs_C: np.ndarray,
        true_class: int,
    ) -> None:
        calibration = find_calibration(self._calibrations, estimator, int(record["samples"]))
        if calibration is not None:
            uniform = int(record["image"]) / 2**64  # a hash is as good as a random number
            score_M = true_scores(probs_C, true_class, uniform=uniform)
            before = states.get(estimator, Coverage.start())
            states[estimator] = before.after(score_M, thresholds(calibration), self._tolerated_L)

    def states(self) -> Iterator[tuple[Estimator, Coverage, float]]:
        """Yield each calibrated estimator with its state, and the evidence that its sets lost their coverage.

        The evidence is NaN where it can't be tested, see `Coverage.evidence`.
        """
        found = self._file.read(self._identity)
        for estimator in ESTIMATORS:
            calibration = next((one for one in self._calibrations if one.estimator == estimator), None)
            if calibration is not None:
                state = found.get(estimator, Coverage.start())
                is_tested_ML = ~np.isnan(thresholds(calibration)) & ~np.isnan(self._tolerated_L)
                yield estimator, state, state.evidence(is_tested_ML)


def _identity(artifact: Artifact) -> str:
    """Digest of weights and calibrations: a network that is calibrated again starts anew."""
    calibrations = json.dumps([one.to_json() for one in artifact.calibrations], sort_keys=True)
    return blake2b(f"{artifact.sha256}{calibrations}".encode(), digest_size=16).hexdigest()
