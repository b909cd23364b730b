"""Sliding-window inference: tile positions, Gaussian importance map, and the accumulation of overlapping logits.

Tiles are computed in tile rows: tiles that differ along the last axis only, or, where these are too few to fill a batch,
along the last two. The borders of the tile rows cut the other axes, and with them the grid, into blocks. A block is in
memory from the first tile row that touches it to the last, so memory grows with the area of a plane and not with the length
of the scan.

    for region, logits in SlidingWindow(image, network, …).blocks():  # logits (classes, h, w, d) of image[:, *region]
        ...
        del logits                                             # otherwise it stays in memory beside the next tiles
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import CPU, Cost, free_memory

from .forward import forward
from .memory_fallback import as_out_of_memory, can_reduce_memory, reduce_memory
from .memory_plan import MAX_BATCH_SIZE, MemoryPlan, plan_memory

Position = tuple[int, int, int]  # first voxel of a tile
Region = tuple[slice, slice, slice]  # part of the grid
RowIndex = tuple[int, int]  # first voxels of a tile row along the two slower axes

OVERLAP = 0.5  # of neighboring tiles, as a fraction of the tile's edge
BACKGROUND_LOGIT = 10.0  # logit of the background in an empty tile; the other logits are 0
_SIGMA = 0.125  # of the Gaussian, as a fraction of the tile's edge, as in MONAI and nnU-Net
_MIN_WEIGHT = 1e-3


def tile_positions(shape: Sequence[int], tile: Sequence[int], *, overlap: float = OVERLAP) -> list[Position]:
    """Return the first voxels of the fewest evenly spaced tiles that cover a grid.

    Args:
        shape: Shape (H, W, D) of the grid, at least the tile's along every axis.
        tile: Shape of a tile.
        overlap: Smallest overlap of neighboring tiles, as a fraction of the tile's edge.

    Raises:
        ValueError: The grid is smaller than a tile, or the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be at least 0 and below 1")
    starts = []
    for length, edge in zip(shape, tile):
        last = length - edge
        if last < 0:
            raise ValueError(f"a grid of {tuple(shape)} is smaller than a tile of {tuple(tile)}")
        count = math.ceil(last / max(1, math.floor(edge * (1 - overlap)))) + 1
        starts.append([round(index * last / max(1, count - 1)) for index in range(count)])
    return [(h, w, d) for h, w, d in itertools.product(*starts)]


def gaussian_importance_map(tile: Sequence[int], device: torch.device) -> Tensor:
    """Return Gaussian weights (H, W, D) of a tile's voxels: 1 in the middle, and never zero."""
    weights = torch.ones((), device=device)
    for edge in tile:
        offsets = torch.arange(edge, dtype=torch.float32, device=device) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (offsets / (_SIGMA * edge)) ** 2)
    return (weights / weights.max()).clamp(min=_MIN_WEIGHT)


@dataclass
class _Block:
    """A part of the grid with its sums: logits (classes, h, w, d) and Gaussian weights (h, w, d).

    The sums are None before the first and after the last of `rows`, the tile rows that touch the block, in order.
    """

    region: Region
    voxels: int
    rows: list[RowIndex]
    sums: tuple[Tensor, Tensor] | None = None


class SlidingWindow:
    """Sliding-window inference of one scan.

    If memory runs out, the fallback of `memory_fallback` goes on with less memory; finished tiles are not repeated.

    Args:
        image: (C, H, W, D), at least as large as a tile along every axis.
        network: The network, in evaluation mode.
        tile: Shape of a tile.
        classes: Classes of the network, with the background.
        device: Device that computes the tiles.
        report: Receives the plan, the progress and warnings.
        mirror: Classes of the scan mirrored along its first axis (`test_time_augmentation.mirrored_classes`), to average
            with the mirrored scan; None computes each tile once.
        exact: Compute in float32 throughout, without autocast.
        probe: Measured cost of one tile, for the plan.
        plan: Memory plan to use instead of one made from `probe` before the first tile.
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
        self.positions: list[Position] = tile_positions(image.shape[1:], self.tile)
        self.empty = {start for start in self.positions if not image[(slice(None), *self._tile_region(start))].any()}
        self.tile_count = len(self.positions) - max(0, len(self.empty) - 1)  # all empty tiles have the same logits
        self._rows, row_edges = self._tile_rows()
        self._blocks: dict[RowIndex, list[_Block]] = {row: [] for row in self._rows}  # that a tile row touches
        self._make_blocks(row_edges)
        self._importance = gaussian_importance_map(self.tile, CPU)
        self._empty_logits: Tensor | None = None  # weighted
        self._finished = 0

    def _tile_rows(self) -> tuple[dict[RowIndex, list[Position]], tuple[int, int]]:
        """Return the tiles of each tile row, and the extent in voxels of a tile row along the two slower axes."""
        shape = self.image.shape[1:]
        # A tile row of the slowest axis is held in memory: the axis whose slab (plane times tile edge) has the fewest voxels.
        # The last axis is the shorter of the other two.
        axes = sorted(range(3), key=lambda axis: math.prod(shape) // shape[axis] * self.tile[axis])
        axes[1:] = sorted(axes[1:], key=lambda axis: -shape[axis])
        self._axes = slow, middle, last = axes
        fills_batch = len({start[last] for start in self.positions}) >= MAX_BATCH_SIZE
        rows: dict[RowIndex, list[Position]] = {}
        for start in sorted(self.positions, key=lambda start: [start[axis] for axis in axes]):
            rows.setdefault((start[slow], start[middle] if fills_batch else 0), []).append(start)
        return rows, (self.tile[slow], self.tile[middle] if fills_batch else shape[middle])

    def _make_blocks(self, row_edges: tuple[int, int]) -> None:
        """Cut the grid into blocks at the borders of the tile rows."""
        (slow, middle, _), shape = self._axes, self.image.shape[1:]
        intervals = []  # of each cut axis: (first plane, end, starts of the tile rows over it)
        for axis, edge in enumerate(row_edges):
            starts = sorted({row[axis] for row in self._rows})
            borders = sorted({border for start in starts for border in (start, start + edge)})
            pairs = itertools.pairwise(borders)
            intervals.append([(low, high, [s for s in starts if 0 <= low - s < edge]) for low, high in pairs])
        for (low, high, slow_starts), (left, right, middle_starts) in itertools.product(*intervals):
            cuts = {slow: slice(low, high), middle: slice(left, right)}
            h, w, d = (cuts.get(axis, slice(0, shape[axis])) for axis in range(3))
            voxels = math.prod(part.stop - part.start for part in (h, w, d))
            block = _Block((h, w, d), voxels, list(itertools.product(slow_starts, middle_starts)))
            for row in block.rows:
                self._blocks[row].append(block)

    @property
    def peak_voxels(self) -> int:
        """The largest number of voxels whose sums are in memory at once."""
        present = peak = 0
        for row, blocks in self._blocks.items():
            present += sum(block.voxels for block in blocks if block.rows[0] == row)
            peak = max(peak, present)
            present -= sum(block.voxels for block in blocks if block.rows[-1] == row)
        return peak

    @torch.inference_mode()
    def blocks(self) -> Iterator[tuple[Region, Tensor]]:
        """Yield the averaged logits (classes, h, w, d), float32 or float16, of each region of the grid, each voxel once.

        Raises:
            OutOfMemoryError: Memory ran out on the CPU with one tile at a time.
        """
        self.network.to(self.device)
        self.report.progress("segmenting", 0, self.tile_count)
        for row, starts in self._rows.items():
            self._add_tiles(starts, row)
            for block in self._blocks[row]:
                if block.rows[-1] == row:
                    yield block.region, self._pop_logits(block)

    def _pop_logits(self, block: _Block) -> Tensor:
        """Return the block's averaged logits and drop every other reference to them."""
        assert block.sums is not None
        (logits, weights), block.sums = block.sums, None
        return logits.div_(weights)

    def _add_tiles(self, starts: list[Position], row: RowIndex) -> None:
        """Add the tiles of one tile row to the sums.

        Empty tiles (zero everywhere) become background without the network: they have no intensities to normalize, and
        networks trained on crops of the body may find organs in them.
        """
        empty = [start for start in starts if start in self.empty]
        pending = [start for start in starts if start not in self.empty]
        while pending:
            batch = pending[: self.plan.batch_size if self.plan else 1]
            logits = self._compute_or_reduce(batch, row)
            if logits is not None:
                pending = pending[len(batch) :]
                for start, tile_logits in zip(batch, logits):
                    self._accumulate(start, tile_logits, row)
                del tile_logits
                self._advance(len(batch))
            del logits  # otherwise they stay in memory beside the next tiles'
        while empty:
            is_first = self._empty_logits is None
            logits = self._compute_or_reduce(empty[:1], row)
            if logits is not None:
                self._accumulate(empty.pop(0), logits[0], row)
                self._advance(int(is_first))

    def _advance(self, tiles: int) -> None:
        self._finished += tiles
        self.report.progress("segmenting", self._finished, self.tile_count)

    def _compute_or_reduce(self, starts: list[Position], row: RowIndex) -> Tensor | None:
        """Return the result of `_compute`; if memory ran out, take a step of the fallback and return None.

        The step is taken here because the tensors of the failed attempt are released only when `_compute` has returned.
        """
        logits = self._compute(starts, row)
        if logits is None:
            self._reduce_memory()
        return logits

    def _compute(self, starts: list[Position], row: RowIndex) -> Tensor | None:
        """Return the weighted logits (B, classes, *tile) of these tiles on the sums' device, and allocate the row's sums.

        None means that memory ran out and a step of the fallback remains. Nothing is added to the sums here.
        """
        try:
            if self._empty_logits is not None and starts[0] in self.empty:
                self._allocate_sums(row)
                return self._empty_logits
            tiles = torch.stack([self.image[(slice(None), *self._tile_region(start))] for start in starts])
            if self.plan is None:
                self.plan = self._make_plan()
                self.report.info(str(self.plan))
                self.report.metric("expected_seconds", self.plan.expected_seconds, **self.plan.to_json())
            logits = self._background_logits() if starts[0] in self.empty else self._network_logits(tiles)
            self._allocate_sums(row)
            logits = logits.to(self.plan.sums_device, self.plan.sums_dtype)
            logits.mul_(self._importance.to(logits.device, logits.dtype))
            if starts[0] in self.empty:
                self._empty_logits = logits
            return logits
        except Exception as error:
            out_of_memory = as_out_of_memory(error)
            if out_of_memory is None:
                raise
            if not can_reduce_memory(self.plan, self.device):
                raise out_of_memory from error
        return None

    def _background_logits(self) -> Tensor:
        """Return the logits (1, classes, *tile) of an empty tile."""
        logits = torch.zeros((1, self.classes, *self.tile), device=self.device)
        logits[:, 0] = BACKGROUND_LOGIT
        return logits

    def _network_logits(self, tiles: Tensor) -> Tensor:
        """Return the logits (B, classes, *tile), float32, of tiles (B, C, *tile), averaged with the mirrored tiles'."""
        tiles = tiles.to(self.device)
        logits = forward(self.network, tiles, exact=self.exact)
        if self.mirror is None:
            return logits
        mirrored = forward(self.network, tiles.flip(2), exact=self.exact).flip(2)
        return (logits + mirrored[:, list(self.mirror)]) / 2

    def _make_plan(self) -> MemoryPlan:
        return plan_memory(
            self.peak_voxels,
            classes=self.classes,
            tiles=self.tile_count,
            device=self.device,
            probe=Cost(self.probe.bytes, self.probe.seconds * (2 if self.mirror else 1)),
            free_device=free_memory(self.device),
            free_system=free_memory(CPU),
        )

    def _allocate_sums(self, row: RowIndex) -> None:
        """Allocate zeros for the sums of all blocks that a tile row touches."""
        assert self.plan is not None
        for block in self._blocks[row]:
            if block.sums is None:
                shape = [part.stop - part.start for part in block.region]
                logits = torch.zeros((self.classes, *shape), dtype=self.plan.sums_dtype, device=self.plan.sums_device)
                block.sums = logits, torch.zeros(shape, device=self.plan.sums_device)

    def _accumulate(self, start: Position, tile_logits: Tensor, row: RowIndex) -> None:
        """Add one tile's weighted logits (classes, *tile) to the blocks in which it lies."""
        importance = self._importance.to(tile_logits.device)
        for block in self._blocks[row]:
            assert block.sums is not None
            logits, weights = block.sums
            in_block, in_tile = [], []
            for first, edge, part in zip(start, self.tile, block.region):
                low, high = max(first, part.start), min(first + edge, part.stop)
                in_block.append(slice(low - part.start, high - part.start))
                in_tile.append(slice(low - first, high - first))
            logits[(slice(None), *in_block)] += tile_logits[(slice(None), *in_tile)]
            weights[tuple(in_block)] += importance[tuple(in_tile)]

    def _tile_region(self, start: Position) -> Region:
        h, w, d = (slice(first, first + edge) for first, edge in zip(start, self.tile))
        return h, w, d

    def _reduce_memory(self) -> None:
        """Take the next step of the out-of-memory fallback and report it."""
        step = reduce_memory(self.plan, self.device)
        if self.plan is not None and step.plan is not None and step.plan.sums_device != self.plan.sums_device:
            for block in itertools.chain.from_iterable(self._blocks.values()):
                if block.sums is not None:
                    block.sums = block.sums[0].to(step.plan.sums_device), block.sums[1].to(step.plan.sums_device)
            if self._empty_logits is not None:
                self._empty_logits = self._empty_logits.to(step.plan.sums_device)
        if step.device != self.device:
            self.network.to(step.device)
        self.plan, self.device = step.plan, step.device
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        message = (
            f"Memory ran out after {self._finished} of {self.tile_count} tiles; {step.description}. "
            "Finished tiles are kept."
        )
        self.report.warning("out_of_memory_step", message, "A larger --spacing needs less memory.")
