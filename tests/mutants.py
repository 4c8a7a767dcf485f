"""Mutation testing: changes the code in one place at a time and counts the changes that the unit tests notice.

cosmic-ray (https://github.com/sixty-north/cosmic-ray) makes the mutants. This program draws a sample of them and runs
the unit tests on each, in copies of the project, never in the project itself. Each mutant is tried by the tests that
execute its line, as coverage (https://github.com/nedbat/coveragepy) found, the fastest first, up to the first failure.
"""

import argparse
import ast
import contextlib
import difflib
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).parent.parent

TARGETS = (
    "model/*.py",
    # Without the compiler: the tests of it export networks, which takes seconds for each mutant.
    "model/network/[!ct_]*.py",
    "model/network/chain.py",
    "service/inference/*.py",
    "service/monitoring/metrics.py",
    "service/monitoring/drift.py",
    "training/calibrate.py",
    "training/metrics.py",
)
TESTS = "tests/unit/test_*.py"
# Files that execute little of the targets, or only what others execute too, and take long.
LEFT_OUT = ("test_bulk_parts", "test_compare", "test_connections", "test_data", "test_fit", "test_ood", "test_vision")
PRELOADED = (
    "bentoml",
    "httpx",
    "hypothesis.extra.numpy",
    "numpy",
    "PIL.Image",
    "scipy.stats",
    "sklearn.metrics",
    "torch",
)

# Replacements that can differ in behaviour without an error of type: sums and products by each other, bits by bits.
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
_BITS = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")
_IDENTITY = ("Is", "IsNot")

# The modules that are there before pytest starts include one of its plugins.
_OPTIONS = (
    *("-x", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"),
    *("-p", "no:cacheprovider", "--hypothesis-seed=0", "--durations=0", "--tb=short"),
)
_OUTPUT = "pytest-output.txt"
_OUTCOMES = ("killed", "survived", "timeout")
_MEMORY = 2**34  # bytes of address space that a mutant may take
_SLOWEST = 10  # times as long as the tests take without a mutant, and
_GRACE = 30.0  # seconds more, until a mutant counts as endless


Place = tuple[int, int, str]  # line, column, kind of operator


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        path: of the file, in the project.
        line: number of the line that it is in, from 1.
        code: the whole mutated file.
    """

    path: str
    line: int
    code: str


@dataclass(frozen=True)
class Coverage:
    """What the tests execute.

    Attributes:
        seconds: of each test.
        lines: by file, the tests that execute a line.
        files: by file, the tests that execute anything in it.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]
    files: dict[str, set[str]]

    def tests(self, mutant: Mutant, lines: Iterable[int]) -> list[str]:
        """The tests that a mutant can fail, the fastest first: of a line that an import runs, all of its file."""
        by_line = self.lines[mutant.path]
        found: set[str] = set().union(*(by_line.get(line, set()) for line in lines))
        if "" in found:  # executed outside a test, by an import
            found = self.files[mutant.path]
        return sorted(found - {""}, key=lambda test: self.seconds.get(test, 0.0))


def main() -> None:
    """Run a sample and print what survived; end with 1 if too many did."""
    arguments = _arguments()
    started = time.monotonic()
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [_copy(Path(folder) / str(number)) for number in range(arguments.processes)]
        sample = draw(arguments.only or TARGETS, arguments.sample, arguments.seed)
        coverage = _baseline(context, copies)
        print(f"{len(coverage.seconds)} tests, {time.monotonic() - started:.0f} s for the run without mutants")
        outcomes = _try_all(context, copies, sample, coverage, until=started + arguments.minutes * 60)
    sys.exit(_report(outcomes, len(sample), arguments.least, time.monotonic() - started))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="number of mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="no mutant starts later (default: %(default)s)")
    parser.add_argument("--least", type=float, default=0.9, help="part that must die (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="at once (default: %(default)s)")
    parser.add_argument("--only", nargs="*", metavar="PATTERN", help="files to mutate instead of all targets")
    return parser.parse_args()


def draw(patterns: Sequence[str], size: int, seed: int) -> list[Mutant]:
    """Draw places that can be mutated, each as likely as any other, and one mutant of each place.

    A place where many operators fit counts no more than one where a single one does.
    """
    if stale := [rule for rule in EQUIVALENT if not rule.is_current(ROOT)]:
        sys.exit("tests/equivalent_mutants.py excludes what is not in the code:\n" + "\n".join(map(str, stale)))
    paths = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    places = [(path, place, changes) for path in paths for place, changes in _places(path).items()]
    chance = random.Random(seed)
    chance.shuffle(places)
    sample: list[Mutant] = []
    for path, place, changes in places:
        chance.shuffle(changes)
        if len(sample) == size:
            break
        sample.extend(islice((mutant for change in changes if (mutant := _mutant(path, place, *change))), 1))
    print(f"{len(places)} places in {len(paths)} files; {len(sample)} mutants drawn with seed {seed}")
    return sample


def _places(path: Path) -> dict[Place, list[tuple[Any, int]]]:
    """The places of a file, each with the operators that fit, and the number that each operator gives it."""
    from cosmic_ray.ast import ast_nodes, get_ast  # noqa: PLC0415 - not needed in the processes that run tests

    source = path.read_text()
    nodes = list(ast_nodes(get_ast(source)))
    unexecuted = _unexecuted(ast.parse(source))
    places: dict[Place, list[tuple[Any, int]]] = defaultdict(list)
    for kind, operator in _operators():
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, position in enumerate(positions):
            if not any(first <= position < last for first, last in unexecuted):
                places[(*position, kind)].append((operator, occurrence))
    return places


def _mutant(path: Path, place: Place, operator: Any, occurrence: int) -> Mutant | None:
    """A mutant; None if it is excluded or no Python."""
    from cosmic_ray.mutating import mutate_code  # noqa: PLC0415

    source, name = path.read_text(), path.relative_to(ROOT).as_posix()
    try:
        code = mutate_code(source, operator, occurrence)
        compile(code, "mutant", "exec")
    except (SyntaxError, AttributeError):  # the latter is the operator's, for an exception with a dot in its name
        return None
    is_excluded = any(rule.excludes(name, *_changed_lines(source, code)) for rule in EQUIVALENT)
    return None if is_excluded else Mutant(name, place[0], code)


def _operators() -> Iterator[tuple[str, Any]]:
    """The operators, each with the kind of change that it belongs to."""
    from cosmic_ray.plugins import get_operator, operator_names  # noqa: PLC0415

    for name in operator_names():
        kind, *pair = name.removeprefix("core/").split("_")
        if kind == "ReplaceBinaryOperator" and not any(set(pair) <= set(group) for group in (_ARITHMETIC, _BITS)):
            continue
        if kind == "ReplaceComparisonOperator" and pair[0] not in _IDENTITY and pair[1] in _IDENTITY:
            continue  # equal small numbers and texts are often identical
        if kind == "ReplaceComparisonOperator" and pair[0] in _IDENTITY and pair[1] not in _IDENTITY:
            continue  # and what is identical is equal
        operator = get_operator(name)
        if kind != "NoOp" and not operator.arguments():
            yield kind, operator()


def _unexecuted(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where nothing stands that a test could or should notice.

    Annotations, arguments of `dataclass`, and the star before keyword-only parameters are held by type checkers;
    `strict=True` guards columns that are of the same length by construction.
    """
    nodes: list[ast.expr | None] = []
    stars: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            nodes.append(node.returns)
            if node.args.kwonlyargs:
                before = [*node.args.args, *node.args.defaults]
                start = max(
                    ((one.end_lineno or 0, one.end_col_offset or 0) for one in before), default=(node.lineno, 0)
                )
                stars.append((start, (node.args.kwonlyargs[0].lineno, node.args.kwonlyargs[0].col_offset)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dataclass":
            nodes.extend(keyword.value for keyword in node.keywords)
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            nodes.append(node.value)
    return stars + [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in nodes if node
    ]


def _changed_lines(source: str, code: str) -> tuple[str, str]:
    """The first line that differs, without indentation, before and after; of a removed line, an empty text after."""
    before, after = source.splitlines(), code.splitlines()
    old, new = next((old, new) for old, new in zip(before, after, strict=False) if old != new)
    return old.strip(), new.strip() if len(before) == len(after) else ""


def _copy(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in ("model", "service", "training", "tests", "docs", "benchmarks", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy2(path, folder)
    return folder


def _baseline(context: Any, copies: Sequence[Path]) -> Coverage:
    """Run all tests without a mutant, and note what each executes."""
    files = sorted(path for path in ROOT.glob(TESTS) if path.stem not in LEFT_OUT)
    names = [path.relative_to(ROOT).as_posix() for path in files]
    shares = [names[number :: len(copies)] for number in range(len(copies))]
    with ThreadPoolExecutor(len(copies)) as pool:
        results = list(
            pool.map(lambda share: _run(context, *share, 600.0, trace=True), zip(copies, shares, strict=True))
        )
    seconds: dict[str, float] = {}
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    files_: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if result is None or result[0]:
            outputs = [(copy / _OUTPUT).read_text() for copy in copies]
            sys.exit("\n".join([*outputs, "the tests fail, or take too long, without a mutant"]))
        seconds |= result[1]
        for path, line, test in result[2]:
            lines[path][line].add(test)
            files_[path].add(test)
    return Coverage(seconds, lines, files_)


def _try_all(
    context: Any, copies: Sequence[Path], sample: Sequence[Mutant], coverage: Coverage, *, until: float
) -> list[tuple[Mutant, str, list[str]]]:
    """Try the mutants, a few at once, in the order of the sample; none is begun after `until`."""
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def one(mutant: Mutant) -> tuple[Mutant, str, list[str]] | None:
        if time.monotonic() > until:
            return None
        copy = free.get()
        try:
            tests = coverage.tests(mutant, _statement(mutant.path, mutant.line))
            outcome = _try(context, copy, mutant, tests, coverage.seconds)
            print(f"{outcome:9}{mutant.path}:{mutant.line}", file=sys.stderr, flush=True)
            return mutant, outcome, tests
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        return [outcome for outcome in pool.map(one, sample) if outcome is not None]


@cache
def _statements(path: str) -> list[tuple[int, int]]:
    """First and last line of each statement, without the body that it may have."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            found.append((first, max(first, body[0].lineno - 1) if body else node.end_lineno or node.lineno))
        elif isinstance(node, ast.ExceptHandler):
            found.append((node.lineno, node.lineno))
    return found


def _statement(path: str, line: int) -> range:
    """Lines of the smallest statement that a line belongs to: an expression over lines is noted at some of them."""
    first, last = min(
        ((first, last) for first, last in _statements(path) if first <= line <= last),
        key=lambda span: span[1] - span[0],
        default=(line, line),
    )
    return range(first, last + 1)


def _try(context: Any, copy: Path, mutant: Mutant, tests: Sequence[str], seconds: dict[str, float]) -> str:
    if not tests:
        return "survived"
    mutated = copy / mutant.path
    original = mutated.read_bytes()
    mutated.write_text(mutant.code)
    try:
        limit = _GRACE + _SLOWEST * sum(seconds.get(test, 0.0) for test in tests)
        result = _run(context, copy, tests, limit, trace=False)
    finally:
        mutated.write_bytes(original)
    return "timeout" if result is None else "killed" if result[0] else "survived"


def _run(context: Any, copy: Path, tests: Sequence[str], limit: float, *, trace: bool) -> Any:
    """Run tests in a process of their own: exit status, seconds and lines; None if they take longer than the limit."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(copy, list(tests), sender, trace))
    process.start()
    sender.close()
    result: Any = (1, {}, ())  # of a process that dies
    with contextlib.suppress(EOFError):
        result = pickle.loads(receiver.recv_bytes()) if receiver.poll(limit) else None  # noqa: S301 - our own child's
    process.kill()
    process.join()
    receiver.close()
    return result


def _child(copy: Path, tests: Sequence[str], sender: Connection, trace: bool) -> None:
    """Run pytest in the copy, whose modules are not imported yet."""
    import coverage  # noqa: PLC0415 - the parent does without
    import pytest  # noqa: PLC0415

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    targets = [str(path) for pattern in TARGETS for path in copy.glob(pattern)]
    noted = coverage.Coverage(data_file=None, include=targets)
    watch = _Watch({test: place for place, test in enumerate(tests)}, noted.switch_context if trace else None)
    with (copy / _OUTPUT).open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        with noted.collect() if trace else contextlib.nullcontext():
            status = pytest.main([*_OPTIONS, *tests], plugins=[watch])
    sender.send_bytes(pickle.dumps((int(status), watch.seconds, list(_executed(noted.get_data(), copy)))))


def _executed(data: Any, copy: Path) -> Iterator[tuple[str, int, str]]:
    """File, line and test of all that was noted; the test is empty for what an import executed."""
    for file in data.measured_files():
        name = Path(file).relative_to(copy).as_posix()
        for line, tests in data.contexts_by_lineno(file).items():
            yield from ((name, line, test) for test in tests)


class _Watch:
    """pytest plugin that orders the tests, notes how long each takes, and says which test begins."""

    def __init__(self, order: dict[str, int], begins: Callable[[str], None] | None) -> None:
        self._order = order
        self._begins = begins or (lambda _: None)
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self._order.get(item.nodeid, 0))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._begins(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self._begins("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration


def _report(outcomes: Sequence[tuple[Mutant, str, list[str]]], drawn: int, least: float, seconds: float) -> int:
    """Print a table by file and the survivors; 1 if too few were killed or nothing was tried."""
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, outcome, _ in outcomes:
        by_file[mutant.path][outcome] += 1
    for mutant, outcome, tests in outcomes:
        if outcome == "survived":
            print(f"\n{mutant.path}:{mutant.line} survived {len(tests)} tests")
            source = (ROOT / mutant.path).read_text().splitlines()
            for row in list(difflib.unified_diff(source, mutant.code.splitlines(), n=1, lineterm=""))[3:]:
                print(f"    {row}")
    total = sum(by_file.values(), Counter())
    print(f"\n{'file':40}{'mutants':>9}" + "".join(f"{outcome:>10}" for outcome in _OUTCOMES) + f"{'rate':>7}")
    for name, counts in (*sorted(by_file.items()), ("all", total)):
        died = 1 - counts["survived"] / counts.total() if counts else 0.0
        columns = "".join(f"{counts[outcome]:10}" for outcome in _OUTCOMES)
        print(f"{name:40}{counts.total():9}{columns}{died:7.2f}")
    print(f"{seconds:.0f} s" + ("" if len(outcomes) == drawn else f"; {drawn - len(outcomes)} mutants were not tried"))
    return int(not total or 1 - total["survived"] / total.total() < least)


if __name__ == "__main__":
    main()
