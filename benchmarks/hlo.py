"""What a compiled program will execute, read from its HLO text, loop bodies once for every trip."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# They move nothing: names for parts of buffers, or the sum of what they call.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "opt-barrier",
)  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{[^{}]*\})?")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # a layout outside the chip's main memory
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)


class Collective(NamedTuple):
    """One collective operation: its kind, how often it runs, and all it moves, bytes."""

    kind: str
    count: int
    bytes: int


class Operation(NamedTuple):
    """One line of HLO: `name = shape kind(operands), text`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    text: str
    root: bool


Computation = dict[str, Operation]  # by name, in order


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled module, `jax.stages.Compiled.as_text()`."""
    found = []
    for operation, computation, times, _ in _executed(text):
        kind = operation.kind.removesuffix("-start")
        if kind in KINDS:
            moved = sum(_bytes(computation[name].shape) for name in operation.operands)
            found.append(Collective(kind, times, times * moved))
    return found


def cycles(text: str) -> int:
    """The TPU compiler's own estimate, in cycles of the core, of one run of the module."""
    total = 0
    for operation, _, times, _ in _executed(text):
        match = _CYCLES.search(operation.text)
        if match:
            total += times * int(match[1])
    return total


def memory_traffic(text: str) -> int:
    """Bytes to and from the device's main memory in one run of the module.

    Every operation reads its operands and writes its result once. Of an operand that is only sliced
    or gathered, and of a buffer that is updated in place, the part counts.
    """
    total = 0
    for operation, computation, times, module in _executed(text):
        if operation.kind in FREE or operation.kind.endswith("-done"):
            continue
        total += times * _traffic(operation, computation, module)
    return total


def _traffic(operation: Operation, computation: Computation, module: dict) -> int:
    inside = module[_called(operation)[0]] if operation.kind == "fusion" else {}
    parameters = {
        int(one.text.partition(")")[0]): one
        for one in inside.values() if one.kind == "parameter"
    }  # fmt: skip
    written = operation
    if operation.kind.endswith("-start"):  # its shape repeats the operands; the end's does not
        ends = (one for one in computation.values() if operation.name in one.operands)
        written = next((one for one in ends if one.kind.endswith("-done")), operation)
    result, total = _bytes(written.shape, main_memory=True), 0
    for i, name in enumerate(operation.operands):
        source = computation.get(name)
        size = _bytes(source.shape, main_memory=True) if source else 0
        if i in parameters:
            users = [one for one in inside.values() if parameters[i].name in one.operands]
        else:
            users = [operation] if not inside else []
        if not size or not users:
            total += size
            continue
        target = parameters[i].name if i in parameters else name
        if operation.kind == "slice-start":
            size = min(size, _bytes(written.shape))
        elif all(u.kind in ("dynamic-slice", "gather") and u.operands[0] == target for u in users):
            size = min(size, sum(_bytes(u.shape) for u in users))
        elif all(
            u.kind == "dynamic-update-slice" and u.operands[0] == target for u in users
        ):
            where = inside or computation
            updates = (where.get(u.operands[1]) for u in users)
            part = sum(_bytes(update.shape) for update in updates if update)
            result, size = max(part, result - size + part), 0  # the rest stays where it is
        total += size
    return total + result


def _bytes(shape: str, main_memory: bool = False) -> int:
    """Bytes of all arrays of a shape, or only of those that lie in the chip's main memory."""
    total = 0
    for match in _ARRAY.finditer(shape):
        kind, sizes = match[1], match[2]
        if main_memory and _ON_CHIP.search(match[0]):
            continue
        width = re.search(r"\d+", kind)
        bits = int(width[0]) if width else 8 if kind == "pred" else 0
        for size in filter(None, sizes.split(",")):
            bits *= int(size)
        total += bits // 8
    return total


def _called(operation: Operation) -> list[str]:
    """Names of the computations that an operation calls."""
    return [
        name.strip().lstrip("%")
        for several, one in _CALLED.findall(operation.text)
        for name in (one or several).split(",")
    ]


def _trips(loop: Operation, module: dict[str, Computation]) -> int:
    """How often a loop runs, as the compiler notes it or as the condition of a scan says.

    Raises:
      ValueError: neither tells.
    """
    noted = _TRIPS.search(loop.text)
    if noted:
        return int(noted[1])
    condition = module[re.search(r"condition=%?([\w.\-]+)", loop.text)[1]]
    root = next(one for one in condition.values() if one.root)
    if root.kind == "compare" and "direction=LT" in root.text:  # a scan counts from 0 by ones
        bound = condition[root.operands[1]]
        if bound.kind == "constant":
            return int(bound.text.partition(")")[0])
    raise ValueError(f"a loop of unknown length: {loop.name}")


def _executed(text: str) -> Iterator[tuple[Operation, Computation, int, dict[str, Computation]]]:
    """Every operation that the entry reaches: itself, its computation, how often, the module."""
    module, entry = _parse(text)

    def walk(name: str, times: int) -> Iterator[tuple]:
        for operation in module[name].values():
            yield operation, module[name], times, module
            if operation.kind not in ("while", "call", "conditional"):
                continue  # a fusion's inside is one operation
            inside = times * _trips(operation, module) if operation.kind == "while" else times
            for called in _called(operation):
                yield from walk(called, inside)

    yield from walk(entry, 1)


@functools.lru_cache(maxsize=2)
def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """All computations by name, and the entry's name."""
    module: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header and not line.startswith(" "):
            current = header[2]
            module[current] = {}
            entry = current if header[1] else entry
        elif current:
            match = _OPERATION.match(line)
            if match:
                root, name, shape, kind, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
                module[current][name] = Operation(name, shape, kind, operands, rest, bool(root))
    return module, entry
