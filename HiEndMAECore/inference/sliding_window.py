"""The sliding window: tiles go through the network, their logits are added up block by block, finished blocks come out.

Tiles are taken in columns: those that differ along the last axis alone (or, where they are too few to fill a batch, along
the last two). Where columns begin and end, the other axes are cut, and the grid with them, into blocks. A block is held
from the first column that touches it to the last, so memory grows with the area of a plane, not with the length of the
scan.

    for place, logits in Sweep(image, network, …).blocks():    # logits (classes, H, W, D) of the voxels image[:, *place]
        ...
        del logits                                             # else it is held while the next tiles are added up
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from HiEndMAECore.errors import OutOfMemoryError, classify_exception
from HiEndMAECore.networks.interface import NetworkTraits
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast, cpu_has_bf16
from HiEndMAECore.runtime.memory import CPU, Cost, free_memory

from .cpu_kernels import CpuInferenceKernels
from .memory_plan import LARGEST_BATCH, MemoryPlan, plan_memory

Start = tuple[int, int, int]
Place = tuple[slice, slice, slice]
Column = tuple[int, int]
BACKGROUND_LOGIT = 10.0  # logit of the background where there is nothing but air; the others' are 0


@dataclass
class _Block:
    """Sums over the voxels at `place`, all planes of the last axis: logits (classes, H, W, D) and weights (H, W, D), None
    where no column of tiles touched it yet. columns: those that do, in order."""

    place: Place
    voxels: int
    columns: list[Column]
    sums: tuple[Tensor, Tensor] | None = None


def forward(network: nn.Module, tiles: Tensor, *, exact: bool) -> Tensor:
    """(B, C, H, W, D) -> float32 logits (B, classes, H, W, D); in bf16 where the processor has it, unless `exact`: then in
    full 32 bits, without TF32."""
    with contextlib.ExitStack() as stack:
        if exact:
            stack.enter_context(_no_tf32())
        else:
            stack.enter_context(autocast(tiles.device, inference=True))
            torch.set_autocast_cache_enabled(False)  # weights are used once a tile: no copy of all of them is kept
        if tiles.device.type == "cpu":
            traits = getattr(
                network, "traits", NetworkTraits()
            )  # a bare module says nothing, and nothing is overwritten
            stack.enter_context(
                CpuInferenceKernels(
                    full=exact or not cpu_has_bf16(), inplace_normalization=traits.inplace_normalization
                )
            )
        return network(tiles).float()


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """On NVIDIA cards convolutions use TF32 (10 bits of mantissa) unless told otherwise."""
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before):
            place.allow_tf32 = allowed


class SlidingWindow:
    """One scan under the window.

    image: (C, H, W, D), at least a tile's size everywhere. exact: float32 throughout, no autocast. mirror: average with the
    scan mirrored along its first axis (right-left), where classes become these (`trust.mirrored_classes`). probe: what one
    tile costs, from which the plan is made where none is given. Out of memory is a step down (`_step_down`); tiles that are
    done stay done.
    """

    def __init__(
        self,
        image: Tensor,
        network: nn.Module,
        *,
        tile: Sequence[int],
        classes: int,
        device: torch.device,
        report: Reporter,
        mirror: Sequence[int] | None = None,
        exact: bool = False,
        probe: Cost | None = None,
        plan: MemoryPlan | None = None,
    ) -> None:
        self.image, self.network, self.device, self.report = image, network, device, report
        self.tile = tuple(int(edge) for edge in tile)
        self.classes, self.mirror, self.exact, self.plan = classes, mirror, exact, plan
        self.probe = probe or Cost()
        shape = image.shape[1:]
        self.starts: list[Start] = tile_positions(shape, self.tile)
        self.air = {start for start in self.starts if not image[(slice(None), *self._place(start))].any()}
        # The slowest axis is the one whose planes are smallest, the last the shorter of the others.
        self.axes = sorted(range(3), key=lambda axis: math.prod(shape) // shape[axis] * self.tile[axis])
        self.axes[1:] = sorted(self.axes[1:], key=lambda axis: -shape[axis])
        self.tiles = len(self.starts) - max(0, len(self.air) - 1)  # air is one piece of work
        self._columns: dict[Column, list[Start]] = {}
        slow, across, last = self.axes
        cut = len({start[last] for start in self.starts}) >= LARGEST_BATCH
        self._edges = self.tile[slow], self.tile[across] if cut else shape[across]
        for start in sorted(self.starts, key=lambda start: [start[axis] for axis in self.axes]):
            self._columns.setdefault((start[slow], start[across] if cut else 0), []).append(start)
        self._blocks: dict[Column, list[_Block]] = {column: [] for column in self._columns}  # that a column touches
        self._cut()
        self._window = gaussian_importance_map(self.tile, CPU)
        self._air: Tensor | None = None
        self._done = 0

    def _cut(self) -> None:
        """The grid into blocks."""
        (slow, across, _), shape = self.axes, self.image.shape[1:]
        spans = []  # of each cut axis: (first plane, end, columns over it)
        for axis, edge in enumerate(self._edges):
            places = sorted({column[axis] for column in self._columns})
            borders = sorted({border for place in places for border in (place, place + edge)})
            pairs = itertools.pairwise(borders)
            spans.append([(low, high, [place for place in places if 0 <= low - place < edge]) for low, high in pairs])
        for (low, high, rows), (left, right, columns) in itertools.product(*spans):
            cut = {slow: slice(low, high), across: slice(left, right)}
            h, w, d = (cut.get(axis, slice(0, shape[axis])) for axis in range(3))
            voxels = math.prod(part.stop - part.start for part in (h, w, d))
            block = _Block((h, w, d), voxels, list(itertools.product(rows, columns)))
            for column in block.columns:
                self._blocks[column].append(block)

    @property
    def voxels(self) -> int:
        """Of all blocks that are held at once, at most."""
        held = most = 0
        for column, blocks in self._blocks.items():
            held += sum(block.voxels for block in blocks if block.columns[0] == column)
            most = max(most, held)
            held -= sum(block.voxels for block in blocks if block.columns[-1] == column)
        return most

    @torch.inference_mode()
    def blocks(self) -> Iterator[tuple[Place, Tensor]]:
        """(where in the grid, averaged logits there: (classes, h, w, d) float32 or float16), each voxel once."""
        self.network.to(self.device)
        self.report.progress("segmenting", 0, self.tiles)
        for column, starts in self._columns.items():
            self._add(starts, column)
            for block in self._blocks[column]:
                if block.columns[-1] == column:
                    yield block.place, self._pop(block)

    def _pop(self, block: _Block) -> Tensor:
        """The block's logits, averaged; nothing here holds them any longer."""
        assert block.sums is not None
        (logits, weights), block.sums = block.sums, None
        return logits.div_(weights)

    def _add(self, starts: list[Start], column: Column) -> None:
        """Add up the tiles of one column. Air tiles (zero everywhere) are background, and not shown to the network: where
        there is nothing to normalise, networks that learned from crops of the body may find organs."""
        air = [start for start in starts if start in self.air]
        body = [start for start in starts if start not in self.air]
        while body:
            batch = body[: self.plan.batch if self.plan else 1]
            scores = self._try(batch, column)
            if scores is not None:
                body = body[len(batch) :]
                for start, own in zip(batch, scores):
                    self._count(start, own, column)
                del own
                self._advance(len(batch))
            del scores  # else they lie beside the next tiles'
        while air:
            new = self._air is None
            scores = self._try(air[:1], column)
            if scores is not None:
                self._count(air.pop(0), scores[0], column)
                self._advance(int(new))

    def _advance(self, tiles: int) -> None:
        self._done += tiles
        self.report.progress("segmenting", self._done, self.tiles)

    def _try(self, starts: list[Start], column: Column) -> Tensor | None:
        """As `_attempt`, and the step down where it failed: by then the failed attempt's tensors are gone."""
        scores = self._attempt(starts, column)
        if scores is None:
            self._step_down()
        return scores

    def _attempt(self, starts: list[Start], column: Column) -> Tensor | None:
        """Weighted logits (B, classes, *tile) of these tiles where the sums are, and room for them in the sums; None
        when memory ran out and there is a smaller way to try. Nothing is added up before all is there."""
        try:
            if self._air is not None and starts[0] in self.air:
                self._make_room(column)
                return self._air
            tiles = torch.stack([self.image[(slice(None), *self._place(start))] for start in starts])
            if self.plan is None:
                self.plan = self._make_plan()
                self.report.info(str(self.plan))
                self.report.metric("expected_seconds", self.plan.expected, **self.plan.message())
            scores = self._background() if starts[0] in self.air else self._scores(tiles)
            self._make_room(column)
            scores = scores.to(self.plan.accumulate, self.plan.dtype)
            scores.mul_(self._window.to(scores.device, scores.dtype))
            if starts[0] in self.air:
                self._air = scores
            return scores
        except Exception as error:
            known = error if isinstance(error, OutOfMemoryError) else classify_exception(error)
            if not isinstance(known, OutOfMemoryError):
                raise
            if not self._can_step_down():
                raise known from error
        return None

    def _background(self) -> Tensor:
        """Logits (1, classes, *tile) of a tile that holds nothing."""
        logits = torch.zeros((1, self.classes, *self.tile), device=self.device)
        logits[:, 0] = BACKGROUND_LOGIT
        return logits

    def _scores(self, tiles: Tensor) -> Tensor:
        """(B, C, *tile) -> (B, classes, *tile) float32 logits, averaged with those of the mirrored tiles when asked."""
        tiles = tiles.to(self.device)
        scores = forward(self.network, tiles, exact=self.exact)
        if self.mirror is None:
            return scores
        mirrored = forward(self.network, tiles.flip(2), exact=self.exact).flip(2)
        return (scores + mirrored[:, list(self.mirror)]) / 2

    def _make_plan(self) -> MemoryPlan:
        return plan_memory(
            self.voxels,
            classes=self.classes,
            tiles=self.tiles,
            device=self.device,
            probe=Cost(self.probe.bytes, self.probe.seconds * (2 if self.mirror else 1)),
            free_device=free_memory(self.device),
            free_system=free_memory(CPU),
        )

    def _make_room(self, column: Column) -> None:
        """Zeros for all blocks that a column touches."""
        assert self.plan is not None
        for block in self._blocks[column]:
            if block.sums is None:
                shape = [part.stop - part.start for part in block.place]
                logits = torch.zeros((self.classes, *shape), dtype=self.plan.dtype, device=self.plan.accumulate)
                block.sums = logits, torch.zeros(shape, device=self.plan.accumulate)

    def _count(self, start: Start, scores: Tensor, column: Column) -> None:
        """Add one tile's weighted logits to the blocks it lies in."""
        window = self._window.to(scores.device)
        for block in self._blocks[column]:
            assert block.sums is not None
            logits, weights = block.sums
            there, here = [], []
            for first, edge, part in zip(start, self.tile, block.place):
                low, high = max(first, part.start), min(first + edge, part.stop)
                there.append(slice(low - part.start, high - part.start))
                here.append(slice(low - first, high - first))
            logits[(slice(None), *there)] += scores[(slice(None), *here)]
            weights[tuple(there)] += window[tuple(here)]

    def _place(self, start: Start) -> Place:
        h, w, d = (slice(first, first + edge) for first, edge in zip(start, self.tile))
        return h, w, d

    # -- the ladder ----------------------------------------------------------------------------------------------

    def _can_step_down(self) -> bool:
        return self.device != CPU or (self.plan is not None and self.plan.batch > 1)

    def _step_down(self) -> None:
        """Half the tiles at a time; then the sums to system memory; then everything on the CPU."""
        plan = self.plan
        if plan is not None and plan.batch > 1:
            self.plan = replace(plan, batch=plan.batch // 2)
            step = f"{self.plan.batch} tile(s) at a time instead of {plan.batch}"
        elif plan is not None and plan.accumulate != CPU:
            self._sums_to_system(plan)
            step = "the sums are kept in system memory"
        else:
            if plan is not None and plan.accumulate != CPU:
                self._sums_to_system(plan)
            self.network.to(CPU)
            step = f"the CPU computes instead of {self.device}"
            self.device = CPU
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        message = f"Memory ran out after {self._done} of {self.tiles} tiles; {step}. Finished tiles are kept."
        self.report.warning("out_of_memory_step", message, "A larger --spacing needs less memory.")

    def _sums_to_system(self, plan: MemoryPlan) -> None:
        for block in {id(block): block for blocks in self._blocks.values() for block in blocks}.values():
            if block.sums is not None:
                block.sums = block.sums[0].to(CPU), block.sums[1].to(CPU)
        self._air = None if self._air is None else self._air.to(CPU)
        self.plan = replace(plan, accumulate=CPU)


OVERLAP = 0.5
_SIGMA = 0.125  # of the tile's edge, as MONAI and nnU-Net have it


def tile_positions(
    shape: Sequence[int], tile: Sequence[int], *, overlap: float = OVERLAP
) -> list[tuple[int, int, int]]:
    """First voxels of the fewest evenly spaced tiles that cover a grid of `shape` (at least the tile's size everywhere)
    with at least `overlap` between neighbours."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be at least 0 and below 1")
    starts = []
    for length, edge in zip(shape, tile):
        room = length - edge
        if room < 0:
            raise ValueError(f"a grid of {tuple(shape)} is smaller than a tile of {tuple(tile)}")
        count = math.ceil(room / max(1, math.floor(edge * (1 - overlap)))) + 1
        starts.append([round(place * room / max(1, count - 1)) for place in range(count)])
    return [(h, w, d) for h, w, d in itertools.product(*starts)]


def gaussian_importance_map(tile: Sequence[int], device: torch.device) -> Tensor:
    """(H, W, D) Gaussian weights, largest 1 in the middle, never zero."""
    weights = torch.ones((), device=device)
    for edge in tile:
        places = torch.arange(edge, dtype=torch.float32, device=device) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (places / (_SIGMA * edge)) ** 2)
    return (weights / weights.max()).clamp(min=1e-3)
