"""Wrong changes to the code, one at a time: which of them do the fast tests notice?

    python -m benchmarks.mutants [--seed 1] [--sample 150] [--module '*/draw.py']

Cosmic Ray makes the changes; what is changed and which tests must notice is in pyproject.toml under `tool.mutants`.
Every place in those modules that can be changed is as likely as the next; at a place, one change is made. The work is
done in copies of the working tree, so stopping a run leaves the tree as it was.
"""

import argparse
import ast
import difflib
import fnmatch
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code, use_mutation
from parso.python.tree import Keyword

REPOSITORY = Path(__file__).resolve().parents[1]
# A change can make a test loop for ever; a machine that others use can be slow for a while.
TIMEOUT_FACTOR, TIMEOUT_EXTRA_S = 4, 20
REPORT_EVERY_S = 30
# Functions whose arguments may change places.
ORDER_IS_NOTHING = ("max", "maximum", "min", "minimum")
KILLED, SURVIVED, TIMEOUT, BROKEN = "killed", "survived", "timeout", "broken"
# pytest's exit codes where tests, or a conftest, cannot be imported.
CANNOT_IMPORT = (2, 4)

Position = tuple[int, int]
# parso's; its own type knows nothing of children.
Node = Any


class _Operator:
    """What Cosmic Ray asks of an operator; those below make the mistakes that its own do not."""

    @classmethod
    def arguments(cls) -> Sequence[object]:
        """It has none."""
        return ()


class SwapArguments(_Operator):
    """Exchanges two neighbouring arguments of a call: f(a=x, b=y) becomes f(a=y, b=x), f(x, y) becomes f(y, x)."""

    def mutation_positions(self, node: Node) -> Iterator[tuple[Position, Position]]:
        """Start and end of what changes."""
        for first, second in self._pairs(node):
            yield first.start_pos, second.end_pos

    def mutate(self, node: Node, index: int) -> Node:
        """The changed node."""
        first, second = self._pairs(node)[index]
        if _is_keyword(first):
            first.children[2], second.children[2] = second.children[2], first.children[2]
        else:
            one, other = node.children.index(first), node.children.index(second)
            node.children[one], node.children[other] = second, first
        return node

    @staticmethod
    def _pairs(node: Node) -> list[tuple[Node, Node]]:
        if node.type != "arglist" or node.get_previous_leaf().get_previous_leaf().value in ORDER_IS_NOTHING:
            return []
        return [
            (first, second)
            for first, second in itertools.pairwise(node.children[::2])
            if (_is_keyword(first) and _is_keyword(second)) or "argument" not in (first.type, second.type)
        ]


class DropArgument(_Operator):
    """Leaves out a named argument of a call, so that its default holds."""

    def mutation_positions(self, node: Node) -> Iterator[tuple[Position, Position]]:
        """Start and end of what changes."""
        if node.type in ("arglist", "trailer"):
            yield from ((child.start_pos, child.end_pos) for child in node.children if _is_keyword(child))

    def mutate(self, node: Node, index: int) -> Node:
        """The changed node."""
        place = [number for number, child in enumerate(node.children) if _is_keyword(child)][index]
        if node.type == "trailer":
            del node.children[place]
        else:
            # With the comma behind it, or before it where it is the last.
            last = place + 1 == len(node.children)
            del node.children[place - last : place + 2 - last]
        return node


class DropStatement(_Operator):
    """Leaves out a call, a raise, or an assignment to an item or attribute."""

    def mutation_positions(self, node: Node) -> Iterator[tuple[Position, Position]]:
        """Start and end of what changes."""
        if node.parent is None or node.parent.type != "simple_stmt":
            return
        stores = node.type == "expr_stmt" and node.children[0].type == "atom_expr"
        if node.type in ("atom_expr", "raise_stmt") or stores:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Node, index: int) -> Node:
        """The changed node."""
        return Keyword("pass", node.start_pos, node.get_first_leaf().prefix)


def _is_keyword(node: Node) -> bool:
    """Is it name=value in a call?"""
    return bool(node.type == "argument" and node.children[1] == "=")


plugins.OPERATOR_PROVIDERS["free2ds"] = {cls.__name__: cls for cls in (SwapArguments, DropArgument, DropStatement)}


@dataclass(frozen=True)
class Mutant:
    """A wrong change.

    Attributes:
        module: Path in the repository.
        start: Line, from 1, and column, from 0.
        operator: Cosmic Ray's name of the kind of change.
        occurrence: Which of the places in the module where the operator can work.
    """

    module: str
    start: Position
    operator: str
    occurrence: int


@dataclass(frozen=True)
class Change:
    """The lines that a mutant takes out and puts in, without indentation."""

    was: str
    now: str

    @classmethod
    def of(cls, before: str, after: str) -> "Change":
        """Compare two versions of a module."""
        lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
        texts = ("\n".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))
        return cls(*texts)

    def __str__(self) -> str:
        """The lines as a diff shows them."""
        sides = (("-", self.was), ("+", self.now))
        return "\n".join(f"    {sign} {line}" for sign, text in sides for line in text.splitlines())


def groups(settings: Mapping[str, Any], only: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The modules and the tests of each, as pytest's arguments.

    Args:
        settings: `tool.mutants`.
        only: Patterns of modules; empty for all.

    Raises:
        SystemExit: A pattern fits no file, or `only` no module.
    """
    found: dict[str, tuple[str, ...]] = {}
    for group in settings["groups"]:
        tests = tuple(path for pattern in group["tests"] for path in expand(pattern))
        for module in (path for pattern in group["modules"] for path in expand(pattern)):
            if not only or any(fnmatch.fnmatch(module, pattern) for pattern in only):
                found.setdefault(module, tests)
    return found or sys.exit("error: no module in tool.mutants of pyproject.toml fits --module")


def expand(pattern: str) -> list[str]:
    """Paths in the repository; an option of pytest stays as it is."""
    if pattern.startswith("-"):
        return [pattern]
    paths = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob(pattern))
    return paths or sys.exit(f"error: tool.mutants in pyproject.toml: nothing is called {pattern}")


def out_of_scope(source: str) -> Iterator[tuple[Position, Position]]:
    """Start and end of what no test should see: annotations, logging, guards against mistakes that are not made."""
    for node in ast.walk(ast.parse(source)):
        hidden: list[ast.AST | None] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        match node:
            case ast.ClassDef():
                # Frozen or not, a dataclass that nobody changes is the same.
                hidden += node.decorator_list
            case ast.keyword(arg="strict" | "encoding"):
                hidden.append(node)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
                hidden.append(node)
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                hidden.append(node)
        for part in hidden:
            if isinstance(part, ast.expr | ast.stmt | ast.keyword):
                assert part.end_lineno is not None
                assert part.end_col_offset is not None
                # From one to the left: the sign of a decorator.
                yield (part.lineno, part.col_offset - 1), (part.end_lineno, part.end_col_offset)


def mutants(module: str, excluded: Sequence[str]) -> Iterator[Mutant]:
    """Every change that the operators can make to a module.

    Args:
        module: Path in the repository.
        excluded: Regular expressions of operators that are not used.
    """
    source = (REPOSITORY / module).read_text(encoding="utf-8")
    nodes = list(ast_nodes(get_ast(source)))
    hidden = list(out_of_scope(source))
    for name in sorted(plugins.operator_names()):
        operator = plugins.get_operator(name)
        if operator.arguments() or any(re.fullmatch(pattern, name) for pattern in excluded):
            continue
        starts = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for occurrence, start in enumerate(starts):
            if not any(first <= start < last for first, last in hidden):
                yield Mutant(module, start, name, occurrence)


def sample(
    found: Sequence[Mutant], equivalent: Sequence[Mapping[str, str]], size: int, seed: int
) -> dict[Mutant, Change]:
    """Some of the mutants, at most one of a place.

    Args:
        found: All of them.
        equivalent: Those that no test can notice, see `is_listed`.
        size: How many; 0 for as many as there are places.
        seed: Of the choice.
    """
    places: dict[tuple[str, Position], list[Mutant]] = {}
    for mutant in found:
        places.setdefault((mutant.module, mutant.start), []).append(mutant)
    generator = random.Random(seed)
    chosen: dict[Mutant, Change] = {}
    for place in generator.sample(sorted(places), len(places)):
        source = (REPOSITORY / place[0]).read_text(encoding="utf-8")
        for mutant in generator.sample(places[place], len(places[place])):
            change = change_of(source, mutant)
            if change and not any(is_listed(mutant.module, change, entry) for entry in equivalent):
                chosen[mutant] = change
                break
        if len(chosen) == size:
            break
    return chosen


def is_listed(module: str, change: Change, entry: Mapping[str, str]) -> bool:
    """Is this the change in an entry: `module` (a pattern), the line that `was` and, if given, what is there `now`?"""
    same_line = fnmatch.fnmatch(module, entry["module"]) and change.was == entry["was"]
    return same_line and entry.get("now", change.now) == change.now


def change_of(source: str, mutant: Mutant) -> Change | None:
    """What a mutant does to its module; None where it does nothing, or what comes out is no Python."""
    try:
        after = mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
        ast.parse(after)
    except (SyntaxError, AttributeError):
        # Cosmic Ray's AttributeError is about `except module.Error`.
        return None
    change = Change.of(source, after)
    return None if change.was == change.now else change


class Tests:
    """Runs tests in a copy of the working tree."""

    def __init__(self, folder: Path) -> None:
        """Run in copies in `folder`; the first one is made now."""
        self._folder = folder
        self._running: set[subprocess.Popen[bytes]] = set()
        self.copies = [folder / "0"]
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0"):
            if name and (REPOSITORY / name).is_file():
                (self.copies[0] / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, self.copies[0] / name)

    def multiply(self, copies: int) -> None:
        """Make more copies of the first."""
        for number in range(1, copies):
            self.copies.append(shutil.copytree(self.copies[0], self._folder / str(number)))

    def run(self, copy: Path, arguments: Sequence[str], timeout_s: float | None, log: Path | None = None) -> int | None:
        """Run pytest; returns its exit code, or None after `timeout_s`."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
        # Without CI, or tests that need what the copy does not have would fail. One thread each: the copies share the
        # cores. No bytecode of mutants: it is told from its source by size and second, and two mutants may share those.
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        environment |= {"PYTHONPATH": str(copy), "TMPDIR": str(self._folder), "OMP_NUM_THREADS": "1"}
        if timeout_s is not None:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with (log or Path(os.devnull)).open("wb") as output:
            process = subprocess.Popen(
                command, cwd=copy, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self._running.add(process)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._kill(process)
            self._running.discard(process)

    def stop(self) -> None:
        """End what still runs."""
        for process in list(self._running):
            self._kill(process)

    @staticmethod
    def _kill(process: "subprocess.Popen[bytes]") -> None:
        """End the tests and what they started."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns 1 where the rate is below the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=150, help="how many changes; 0 for one at every place")
    parser.add_argument("--module", action="append", default=[], help="pattern of modules; may be repeated")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(argv)
    # Clean up when told to stop, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
    tests_of = groups(settings, options.module)
    for entry in settings.get("equivalent", []):
        sources = [(REPOSITORY / path).read_text(encoding="utf-8") for path in expand(entry["module"])]
        if not any(all(line in source for line in entry["was"].splitlines()) for source in sources):
            sys.exit(f"error: tool.mutants in pyproject.toml: {entry['module']} has no line {entry['was']}")
    found = [mutant for module in tests_of for mutant in mutants(module, settings["exclude"])]
    changes = sample(found, settings.get("equivalent", []), options.sample, options.seed)
    print(
        f"{len(found)} changes at {len({(m.module, m.start) for m in found})} places; {len(changes)} are tried",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        tests = Tests(Path(folder))
        try:
            return measure(tests, pool, options.jobs, tests_of, changes, settings["min_rate"])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            tests.stop()


def measure(
    tests: Tests,
    pool: ThreadPoolExecutor,
    jobs: int,
    tests_of: Mapping[str, tuple[str, ...]],
    changes: Mapping[Mutant, Change],
    min_rate: float,
) -> int:
    """Try every change and print what became of it; returns the exit code."""

    def seconds_unchanged(arguments: tuple[str, ...]) -> float:
        start, log = time.perf_counter(), tests.copies[0].parent / f"{abs(hash(arguments))}.log"
        if tests.run(tests.copies[0], arguments, None, log):
            raise SystemExit(f"{log.read_text()}\nerror: these tests fail without any change: {' '.join(arguments)}")
        return time.perf_counter() - start

    needed = sorted({tests_of[mutant.module] for mutant in changes})
    limits = dict(zip(needed, pool.map(seconds_unchanged, needed), strict=True))
    for arguments, seconds in limits.items():
        print(f"{seconds:6.1f} s unchanged: {' '.join(arguments)}", flush=True)
    tests.multiply(jobs)
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in tests.copies:
        free.put(copy)

    def outcome(mutant: Mutant) -> str:
        copy = free.get()
        try:
            arguments = tests_of[mutant.module]
            operator = plugins.get_operator(mutant.operator)()
            with use_mutation(copy / mutant.module, operator, mutant.occurrence):
                code = tests.run(copy, arguments, limits[arguments] * TIMEOUT_FACTOR + TIMEOUT_EXTRA_S)
        finally:
            free.put(copy)
        if code in CANNOT_IMPORT:
            return BROKEN
        return TIMEOUT if code is None else KILLED if code else SURVIVED

    counts: dict[str, Counter[str]] = {module: Counter() for module in tests_of}
    start = reported = time.perf_counter()
    for done, (mutant, result) in enumerate(zip(changes, pool.map(outcome, changes), strict=True), start=1):
        counts[mutant.module][result] += 1
        if result == SURVIVED:
            print(f"survived: {mutant.module}:{mutant.start[0]} {mutant.operator}\n{changes[mutant]}", flush=True)
        if time.perf_counter() - reported > REPORT_EVERY_S:
            reported = time.perf_counter()
            print(f"{done}/{len(changes)} in {reported - start:.0f} s", flush=True)
    return report(counts, min_rate)


def report(counts: Mapping[str, Counter[str]], min_rate: float) -> int:
    """Print a table; returns the exit code.

    A change that ends in a timeout has been noticed. One after which the module cannot be imported is left out of the
    rate: no test is needed to notice that.
    """
    total: Counter[str] = sum(counts.values(), Counter())
    width = max(len(module) for module in counts)
    columns = (KILLED, TIMEOUT, SURVIVED, BROKEN)
    print(f"\n{'module':{width}} {' '.join(f'{column:>8}' for column in columns)}   rate")
    for module, count in (*counts.items(), ("all", total)):
        if count:
            print(f"{module:{width}} {' '.join(f'{count[column]:8}' for column in columns)} {rate(count):6.1%}")
    reached = rate(total)
    print(f"\nrate {reached:.4g} >={min_rate:g} {'ok' if reached >= min_rate else 'short'}")
    return int(reached < min_rate)


def rate(count: Counter[str]) -> float:
    """The share that was noticed; 1 where there was nothing to notice."""
    noticed = count[KILLED] + count[TIMEOUT]
    return noticed / (noticed + count[SURVIVED]) if noticed + count[SURVIVED] else 1.0


if __name__ == "__main__":
    sys.exit(main())
