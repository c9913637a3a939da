"""Read the collectives and the cost of a compiled program from its text (optimized HLO).

XLA's own cost analysis counts each loop's body once. Here a body counts as often as the loop runs it.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

# JAX's public cost analysis takes a compiled program as a whole, and there is no public one of a text.
from jaxlib import _hlo, _jax  # type: ignore[attr-defined]

# Opcodes of collectives. Those of asynchronous ones end in `-start`.
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# An exchange between slices is a transfer to the hosts, which say what is to happen with it there.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([^}]*)\}')

# Opcodes that move no data.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while")

_WIDTHS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}  # bits; of others, as in their name
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
# What a kernel written for TPUs says of its cost.
_KERNEL = re.compile(r'"cost_estimate":\{"flops":"(\d+)",.*?"bytes_accessed":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost on one device.

    `flops` are two for a multiply-accumulate. `bytes` are those read and written, with padding.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange among devices, and the number of times that the program runs it."""

    kind: str
    shapes: tuple[str, ...]  # whole arrays gathered, reduced or sent on one device, such as `f32[768,3072]`
    bytes: int  # of these arrays
    group: int  # devices that take part in one exchange
    count: int
    name: str  # the JAX operation that it comes from, where XLA still knows it
    # Over the links between chips, or over the data centre's network between slices of TPUs. There `group`
    # counts slices, and `bytes` are those of one device's part of the arrays.
    between: Literal["chips", "slices"] = "chips"

    @property
    def sent(self) -> float:
        """Bytes that each device sends for one exchange, in a ring."""
        rounds = 2 if self.kind == "all-reduce" else 1
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return rounds * share * self.bytes


@dataclasses.dataclass(frozen=True)
class Access:
    """The bytes that one instruction reads and writes each time that it runs, with padding.

    A fusion is one instruction. Of an operand that it only takes slices of, the slices count.
    """

    opcode: str
    name: str  # what it comes from, where XLA still knows it
    count: int
    bytes: int  # of operands and results
    hbm: int  # without those that are in the chip's own memory


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, name: str) -> str | None:
        """Return the computation that an attribute such as `body=%name` names."""
        match = re.search(rf"\b{name}=%([\w.\-]+)", self.line)
        return match and match[1]

    @property
    def called(self) -> list[str]:
        """Computations that run as a part of this instruction, apart from loops."""
        several = re.search(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", self.line)
        names = re.findall(r"%([\w.\-]+)", several[1]) if several else []
        names += filter(None, (self.attribute("calls"), self.opcode == "call" and self.attribute("to_apply")))
        return names


class Program:
    """A compiled module, parsed from its text."""

    def __init__(self, text: str):
        self._text: dict[str, list[str]] = {}  # lines of each computation; callees come first
        self._entry = ""
        name = None
        for line in text.splitlines():
            if name is None and (match := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)):
                name = match[2]
                self._text[name] = []
                self._entry = name if match[1] else self._entry
            if name is not None:
                self._text[name].append(line)
                if line == "}":
                    name = None
        if not self._entry:
            raise ValueError("the text is not that of an HLO module: it has no entry")
        self._parsed: dict[str, dict[str, _Instruction]] = {}

    def cost(self, once: Cost) -> Cost:
        """Compute the cost of the program with each loop's body counted as often as it runs.

        `once` is XLA's own count, which takes each loop's body once.
        """
        repeats = self._repeats(self._entry)
        if not repeats.flops and not repeats.bytes:
            return once
        # XLA counts padding in `once`, which is for the target device, but not in `_once`.
        padding = once.bytes / self._once(self._entry).bytes / self._padding(self._runs())
        return once + Cost(repeats.flops, repeats.bytes * padding)

    def collectives(self) -> list[Collective]:
        """List the collectives, each with the number of times that the loops around it run it."""
        found: dict[Any, Collective] = {}
        for name, count in self._runs().items():
            # A reduce-scatter on TPUs is an all-reduce in a computation of this name, which keeps a part.
            scatters = name.startswith("all-reduce-scatter")
            for instruction in self._instructions(name).values():
                if instruction.opcode == "send" and (exchange := _BETWEEN_SLICES.search(instruction.line)):
                    found[instruction.name] = self._between_slices(name, instruction, exchange[1], count)
                kind = instruction.opcode.removesuffix("-start")
                if kind not in KINDS:
                    continue
                # XLA may overlap one exchange with other work. The exchange is then in several places, which
                # share a chain_id. (A channel_id alone does not tell exchanges apart.)
                chain = re.search(r'chain_id="(\d+)"', instruction.line)
                channel = re.search(r"channel_id=(\d+)", instruction.line)
                key = (kind, chain[1], channel and channel[1]) if chain else instruction.name
                if key not in found:
                    found[key] = self._collective(name, instruction, count, scatters)
        return list(found.values())

    def accesses(self) -> list[Access]:
        """List what each instruction reads and writes, by operands and results.

        XLA's count, with its model of each opcode, is `cost`; this one tells where the bytes go.
        """
        found = []
        for name, count in self._runs(inside=False).items():
            known = self._instructions(name)
            for instruction in known.values():
                if instruction.opcode in (*_FREE, "call", "async-start") or _ends(instruction):
                    continue
                if "ConcatBitcast" in instruction.line:  # parts that were moved to be neighbours
                    continue
                sizes = [_placed(shape) for shape in self._touched(known, instruction)]
                origin = re.search(r'op_name="([^"]*)"', instruction.line)
                found.append(
                    Access(
                        instruction.opcode,
                        origin[1] if origin else "",
                        count,
                        sum(every for every, _ in sizes),
                        sum(hbm for _, hbm in sizes),
                    )
                )
        return found

    def hbm_bytes(self) -> int:
        """Count the bytes that the program reads and writes in HBM, by operands and results."""
        return sum(access.count * access.hbm for access in self.accesses())

    def _touched(self, known: Mapping[str, _Instruction], instruction: _Instruction) -> Iterator[str]:
        """Yield the shapes of what an instruction reads and writes."""
        opcode, operands = instruction.opcode, [known[name].shape for name in instruction.operands]
        fused = instruction.attribute("calls") if opcode == "fusion" else None
        if opcode in ("dynamic-slice", "slice", "gather"):
            yield from (instruction.shape, instruction.shape)
        elif opcode == "dynamic-update-slice":
            yield from (operands[1], operands[1])
        elif opcode == "copy-start":  # its shape has the destination, the source and a counter
            yield from [match[0] for match in _SHAPE.finditer(instruction.shape)][:2]
        elif opcode == "slice-start":  # its shape has the source before the destination
            taken = [match[0] for match in _SHAPE.finditer(instruction.shape)][1]
            yield from (taken, _in_memory(taken, "S(1)" if "S(1)" in operands[0] else ""))
        elif fused is None:
            yield from (instruction.shape, *operands)
        else:
            yield from self._touched_by_fusion(fused, instruction.shape, operands)

    def _touched_by_fusion(self, fused: str, result: str, operands: Sequence[str]) -> Iterator[str]:
        inside = self._instructions(fused)
        users: dict[str, list[_Instruction]] = defaultdict(list)
        for one in inside.values():
            for operand in one.operands:
                users[operand].append(one)
        root = self._root(fused)
        updated = set()
        if root.opcode == "dynamic-update-slice":  # in place: of the whole, only the update is written
            result = inside[root.operands[1]].shape
            updated = {root.operands[0]}
        yield result
        for one in inside.values():
            place = re.search(r"\bparameter\((\d+)\)", one.line) if one.opcode == "parameter" else None
            if place is None or one.name in updated:
                continue
            slices = [user for user in users[one.name] if user.opcode in ("dynamic-slice", "slice")]
            if slices and len(slices) == len(users[one.name]):
                memory = "S(1)" if "S(1)" in operands[int(place[1])] else ""
                yield from (_in_memory(user.shape, memory) for user in slices)
            else:
                yield operands[int(place[1])]

    def loops(self) -> dict[str, int]:
        """Map the body of each loop that runs to the loop's trip count."""
        return {body: trips for name in self._runs() for body, trips in self._loops(name)}

    def _collective(
        self, computation: str, instruction: _Instruction, count: int, scatters: bool
    ) -> Collective:
        kind = instruction.opcode.removesuffix("-start")
        known = self._instructions(computation)
        operands = [shape for operand in instruction.operands for shape in _shapes(known[operand].shape)]
        if kind == "all-gather":
            # An asynchronous all-gather returns its operands too, before the gathered arrays.
            results = _shapes(instruction.shape)
            shapes = results[-len(operands) :] if instruction.opcode.endswith("-start") else results
        else:
            shapes = operands
        name = re.search(r'op_name="([^"]*)"', instruction.line)
        return Collective(
            kind="reduce-scatter" if scatters else kind,
            shapes=tuple(shapes),
            bytes=sum(map(_size, shapes)),
            group=_group(instruction.line),
            count=count,
            name=name[1] if name else "",
        )

    def _between_slices(
        self, computation: str, instruction: _Instruction, exchange: str, count: int
    ) -> Collective:
        slices = _SLICES.search(instruction.line)
        if slices is None:
            raise ValueError(f"an exchange between slices that names none: {instruction.line}")
        kind, group = exchange.lower().replace("_", "-"), slices[1].count(",") + 1
        shapes = tuple(_shapes(self._instructions(computation)[instruction.operands[0]].shape))
        # What is sent of an all-gather is the slice's own part.
        parts = group if kind == "all-gather" else 1
        return Collective(kind, shapes, parts * sum(map(_size, shapes)), group, count, "", "slices")

    def _runs(self, *, inside: bool = True) -> Mapping[str, int]:
        """Count the runs of each computation; without `inside`, leave out those of fusions."""
        counts: dict[str, int] = defaultdict(int)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self._instructions(name).values():
                if inside or not (instruction.opcode == "fusion" or _ends(instruction)):
                    for called in instruction.called:
                        visit(called, times)
            for body, trips in self._loops(name):
                visit(body, times * trips)

        visit(self._entry, 1)
        return counts

    def _repeats(self, computation: str) -> Cost:
        """Sum the cost of the loops of a computation, less one round of each."""
        total = Cost(0.0, 0.0)
        for body, trips in self._loops(computation):
            total = total + self._repeats(body) * trips
            if trips != 1:
                once = self._once(body)
                total = total + Cost(once.flops, once.bytes * self._padding([body])) * (trips - 1)
        for instruction in self._instructions(computation).values():
            for called in instruction.called:
                total = total + self._repeats(called)
        return total

    def _padding(self, computations: Iterable[str]) -> float:
        """Compute the ratio of padded to plain bytes of all operands and results in `computations`."""
        plain = padded = 0
        for name in computations:
            known = self._instructions(name)
            for instruction in known.values():
                if instruction.opcode in _FREE:
                    continue
                for shape in (instruction.shape, *(known[operand].shape for operand in instruction.operands)):
                    sizes = _sizes(shape)
                    plain, padded = plain + sizes[0], padded + sizes[1]
        return padded / plain if plain else 1.0

    def _loops(self, computation: str) -> Iterator[tuple[str, int]]:
        """Yield the body and the trip count of each loop of a computation."""
        for instruction in self._instructions(computation).values():
            if instruction.opcode == "while" and (body := instruction.attribute("body")):
                yield body, self._trips(computation, instruction)

    def _trips(self, computation: str, loop: _Instruction) -> int:
        """Return the trip count of a loop: XLA's note, or else a count from its condition `i < n`.

        Returns 1 where the program decides when to stop, as in drawing random numbers by rejection.
        """
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line):
            return int(match[1])
        condition, body = loop.attribute("condition"), loop.attribute("body")
        if condition is None or body is None:
            return 1
        test = self._root(condition)
        if "direction=LT" in test.line:
            index = self._carried(condition, test.operands[0])
            bound = self._constant(condition, test.operands[1])
            outside = self._instructions(computation).get(loop.operands[0])
            if (
                bound is None
                and (place := self._carried(condition, test.operands[1])) is not None
                and outside
            ):
                bound = self._constant(computation, outside.operands[place])
            if index is not None and outside is not None and outside.opcode == "tuple":
                start = self._constant(computation, outside.operands[index])
                step = self._step(body, index)
                if start is not None and step and bound is not None:
                    return max(0, math.ceil((bound - start) / step))
        return 1

    def _step(self, body: str, index: int) -> int | None:
        """Return the number that a loop's body adds to its counter, which the loop carries at `index`."""
        known = self._instructions(body)
        after = known.get(self._root(body).operands[index])
        after = self._through_copies(body, after)
        if after is None or after.opcode != "add":
            return None
        return next(
            (value for operand in after.operands if (value := self._constant(body, operand)) is not None),
            None,
        )

    def _carried(self, computation: str, name: str) -> int | None:
        """Return the index, among the values that the loop carries, of an instruction's value."""
        found = self._through_copies(computation, self._instructions(computation).get(name))
        if found is None or found.opcode != "get-tuple-element":
            return None
        match = re.search(r"index=(\d+)", found.line)
        return int(match[1]) if match else None

    def _constant(self, computation: str, name: str) -> int | None:
        found = self._through_copies(computation, self._instructions(computation).get(name))
        match = found and re.search(r" constant\((-?\d+)\)", found.line)
        return int(match[1]) if match else None

    def _through_copies(self, computation: str, found: _Instruction | None) -> _Instruction | None:
        while found is not None and found.opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert"):
            found = self._instructions(computation).get(found.operands[0])
        return found

    def _root(self, computation: str) -> _Instruction:
        return next(
            found
            for found in self._instructions(computation).values()
            if found.line.lstrip().startswith("ROOT ")
        )

    def _once(self, computation: str) -> Cost:
        """Return XLA's count for a computation by itself."""
        wanted: set[str] = set()

        def visit(name: str) -> None:
            if name not in wanted:
                wanted.add(name)
                for line in self._text[name]:
                    for called in re.findall(r"%([\w.\-]+)", line):
                        if called in self._text:
                            visit(called)

        visit(computation)
        lines = ["HloModule part", ""]
        for name, text in self._text.items():
            if name in wanted:
                first = text[0].removeprefix("ENTRY ")
                lines += ["ENTRY " + first if name == computation else first, *text[1:], ""]
        # The metadata refers to a table of source locations that the text lacks.
        whole = re.sub(r", metadata=\{[^}]*\}", "", "\n".join(lines))
        # XLA for TPUs counts what a kernel says of itself. Here it knows nothing of kernels.
        kernels = (Cost(float(flops), float(moved)) for flops, moved in _KERNEL.findall(whole))
        return sum(kernels, start=count(whole))

    def _instructions(self, computation: str) -> Mapping[str, _Instruction]:
        if computation not in self._parsed:
            found = map(_parse, self._text[computation][1:-1])
            self._parsed[computation] = {one.name: one for one in found if one is not None}
        return self._parsed[computation]


def count(text: str) -> Cost:
    """Run XLA's cost analysis of a module's text, with each loop's body once and arrays unpadded."""
    client = jax.devices("cpu")[0].client
    properties = _jax.hlo_module_cost_analysis(client, _hlo.hlo_module_from_text(text))
    return Cost(properties.get("flops", 0.0), properties.get("bytes accessed", 0.0))  # zeros have no entry


def _parse(line: str) -> _Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if match is None:
        return None
    name, rest = match.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    operands = re.findall(r"%([\w.\-]+)", rest[start : _closing(rest, start)])
    return _Instruction(name, shape, rest[:start], tuple(operands), line)


def _closing(text: str, start: int) -> int:
    """Find the index of the bracket that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError(f"brackets do not match: {text[:100]}")


def _shapes(text: str) -> list[str]:
    """List the arrays of a shape, without layouts and without the counters of asynchronous operations."""
    found = [f"{kind}[{dims}]" for kind, dims, _ in _SHAPE.findall(text)]
    return [shape for shape in found if shape not in ("u32[]",)]


def _size(shape: str) -> int:
    """Count the bytes of the arrays in a shape such as `f32[768,3072]`, unpadded."""
    return _sizes(shape)[0]


def _ends(instruction: _Instruction) -> bool:
    """Tell whether an instruction waits for an asynchronous one, which counts where it starts."""
    return instruction.opcode.endswith(("-done", "-update"))


def _placed(shape: str) -> tuple[int, int]:
    """Count the padded bytes of the arrays in a shape, and those of them that are in HBM."""
    arrays = [match[0] for match in _SHAPE.finditer(shape)]
    return (
        sum(_sizes(array)[1] for array in arrays),
        sum(_sizes(array)[1] for array in arrays if "S(1)" not in array),
    )


def _in_memory(shape: str, memory: str) -> str:
    """Return a shape as it is in the memory of an operand."""
    return shape.replace("S(1)", "").replace("}", memory + "}")


@functools.cache
def _sizes(shape: str) -> tuple[int, int]:
    """Count the bytes of the arrays in a shape, unpadded and padded to their tiles.

    Such a shape is `f32[17,96]{1,0:T(8,128)}`.
    """
    plain = padded = 0
    for kind, dims, layout in _SHAPE.findall(shape):
        bits = _WIDTHS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
        sizes = [int(size) for size in dims.split(",") if size]
        plain += math.prod(sizes) * bits // 8
        order, _, tiles = layout.partition(":")
        if tile := re.match(r"T\(([\d,]+)\)", tiles):
            minor = [int(dim) for dim in order.split(",") if dim]
            for dim, multiple in zip(minor, reversed(tile[1].split(",")), strict=False):
                sizes[dim] = -(-sizes[dim] // int(multiple)) * int(multiple)
        padded += math.prod(sizes) * bits // 8
    return plain, padded


def _group(line: str) -> int:
    """Count the devices that take part, from `{{0,1},{2,3}}`, `[2,8]<=[16]` or `mesh['a'=2,'b'=8] {'b'}`."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        # A part of an axis is written 'a':(1)2, where 2 is the part's size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return match[1].count(",") + 1
    return 2  # a permutation has pairs of a source and a target
