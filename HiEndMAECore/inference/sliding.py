"""The sliding window: tiles go through the network, their logits are added up band by band, finished bands come out.

Tiles are taken in order along one axis. Where rows of tiles begin and end, the grid is cut into bands; a band is finished
when the next row begins behind it. Only the bands under the present row are held, so memory grows with the area of a
plane, not with the length of the scan.

    for first, logits in Sweep(image, network, …).bands():     # logits (classes, H, W, D), a few planes along sweep.axis
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

from HiEndMAECore.devices import autocast
from HiEndMAECore.errors import OutOfMemoryError
from HiEndMAECore.reporting.front_door import recognise
from HiEndMAECore.reporting.reporter import Reporter

from .memory import CPU, Footprint, MemoryPlan, free_memory, plan_memory
from .tiling import plan_tiles, tile_weights

Start = tuple[int, int, int]


@dataclass
class _Band:
    """Sums over the planes `first <= i < end` along the axis: logits (classes, H, W, D) and weights (H, W, D)."""

    first: int
    end: int
    logits: Tensor
    weights: Tensor


def forward(network: nn.Module, tiles: Tensor, *, exact: bool) -> Tensor:
    """(B, C, H, W, D) -> float32 logits (B, classes, H, W, D); in bf16 where the processor has it, unless `exact`: then in
    full 32 bits, without TF32."""
    if exact:
        with _no_tf32():
            return network(tiles)
    with autocast(tiles.device):
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


class Sweep:
    """One scan under the window.

    image: (C, H, W, D), at least a tile's size everywhere. exact: float32 throughout, no autocast. mirror: average over
    all eight mirrorings. probe: what one tile costs, from which the plan is made where none is given. Out of memory is
    a step down (`_step_down`); tiles that are done stay done.
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
        mirror: bool = False,
        exact: bool = False,
        probe: Footprint | None = None,
        plan: MemoryPlan | None = None,
    ) -> None:
        self.image, self.network, self.device, self.report = image, network, device, report
        self.tile = tuple(int(edge) for edge in tile)
        self.classes, self.mirror, self.exact, self.plan = classes, mirror, exact, plan
        self.probe = probe or Footprint()
        shape = image.shape[1:]
        self.starts: list[Start] = plan_tiles(shape, self.tile)
        self.air = {start for start in self.starts if not image[(slice(None), *self._place(start))].any()}
        # Along the axis whose bands are smallest.
        self.axis = min(range(3), key=lambda axis: math.prod(shape) // shape[axis] * self.tile[axis])
        self.rows = sorted({start[self.axis] for start in self.starts})
        self.borders = sorted({border for row in self.rows for border in (row, row + self.tile[self.axis])})
        self._open: list[_Band] = []
        self._window = tile_weights(self.tile, CPU)
        self._air: Tensor | None = None
        self._done = 0

    @torch.inference_mode()
    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """(first plane, averaged logits (classes, H, W, D) float32 or float16) in order along `axis`."""
        self.network.to(self.device)
        self.report.progress("segmenting", 0, len(self.starts))
        for row, following in itertools.pairwise([*self.rows, self.borders[-1]]):
            self._add([start for start in self.starts if start[self.axis] == row])
            while self._open and self._open[0].end <= following:
                yield self._pop()

    def _pop(self) -> tuple[int, Tensor]:
        """The first band, averaged; nothing here holds it any longer."""
        band = self._open.pop(0)
        return band.first, band.logits.div_(band.weights)

    def _add(self, starts: list[Start]) -> None:
        """Add up the tiles of one row. Air tiles (zero everywhere) all get the network's one answer to air."""
        air = [start for start in starts if start in self.air]
        body = [start for start in starts if start not in self.air]
        while body:
            batch = body[: self.plan.batch if self.plan else 1]
            scores = self._try(batch)
            if scores is not None:
                body = body[len(batch) :]
                for start, own in zip(batch, scores):
                    self._count(start, own)
                del own
            del scores  # else they lie beside the next tiles'
        while air:
            scores = self._try(air[:1])
            if scores is not None:
                self._count(air.pop(0), scores[0])

    def _try(self, starts: list[Start]) -> Tensor | None:
        """As `_attempt`, and the step down where it failed: by then the failed attempt's tensors are gone."""
        scores = self._attempt(starts)
        if scores is None:
            self._step_down()
        return scores

    def _attempt(self, starts: list[Start]) -> Tensor | None:
        """Weighted logits (B, classes, *tile) of these tiles where the sums are, and room for them in the sums; None
        when memory ran out and there is a smaller way to try. Nothing is added up before all is there."""
        first = min(start[self.axis] for start in starts)
        try:
            if self._air is not None and starts[0] in self.air:
                self._make_room(first)
                return self._air
            tiles = torch.stack([self.image[(slice(None), *self._place(start))] for start in starts])
            if self.plan is None:
                self.plan = self._make_plan()
                self.report.say(str(self.plan))
                self.report.metric("expected_seconds", self.plan.expected, **self.plan.told())
            scores = self._scores(tiles)
            self._make_room(first)
            scores = scores.to(self.plan.accumulate, self.plan.dtype)
            scores.mul_(self._window.to(scores.device, scores.dtype))
            if starts[0] in self.air:
                self._air = scores
            return scores
        except Exception as error:
            known = error if isinstance(error, OutOfMemoryError) else recognise(error)
            if not isinstance(known, OutOfMemoryError):
                raise
            if not self._can_step_down():
                raise known from error
        return None

    def _scores(self, tiles: Tensor) -> Tensor:
        """(B, C, *tile) -> (B, classes, *tile) float32 logits, averaged over all mirrorings when asked."""
        tiles = tiles.to(self.device)
        turns = list(itertools.product((False, True), repeat=3)) if self.mirror else [(False, False, False)]
        total: Tensor | None = None
        for turn in turns:
            axes = [axis + 2 for axis, flipped in enumerate(turn) if flipped]
            scores = forward(self.network, tiles.flip(axes) if axes else tiles, exact=self.exact)
            scores = scores.flip(axes) if axes else scores
            total = scores if total is None else total.add_(scores)
        assert total is not None
        return total / len(turns) if len(turns) > 1 else total

    def _make_plan(self) -> MemoryPlan:
        shape = self.image.shape[1:]
        return plan_memory(
            shape,
            axis=self.axis,
            planes=self.tile[self.axis],
            classes=self.classes,
            tiles=len(self.starts) - max(0, len(self.air) - 1),
            device=self.device,
            probe=Footprint(self.probe.bytes, self.probe.seconds * (8 if self.mirror else 1)),
            free_device=free_memory(self.device),
            free_system=free_memory(CPU),
        )

    def _make_room(self, first: int) -> None:
        """Bands of zeros for all planes of a tile that begins at `first`."""
        assert self.plan is not None
        for low, high in itertools.pairwise(self.borders):
            if low >= first + self.tile[self.axis] or (self._open and low < self._open[-1].end) or low < first:
                continue
            shape = list(self.image.shape[1:])
            shape[self.axis] = high - low
            logits = torch.zeros((self.classes, *shape), dtype=self.plan.dtype, device=self.plan.accumulate)
            weights = torch.zeros(shape, device=self.plan.accumulate)
            self._open.append(_Band(low, high, logits, weights))

    def _count(self, start: Start, scores: Tensor) -> None:
        """Add one tile's weighted logits to the bands it lies in."""
        begin, end = start[self.axis], start[self.axis] + self.tile[self.axis]
        window = self._window.to(scores.device)
        place = self._place(start)
        for band in self._open:
            low, high = max(band.first, begin), min(band.end, end)
            if low < high:
                there = tuple(
                    slice(low - band.first, high - band.first) if a == self.axis else place[a] for a in range(3)
                )
                here = tuple(slice(low - begin, high - begin) if a == self.axis else slice(None) for a in range(3))
                band.logits[(slice(None), *there)] += scores[(slice(None), *here)]
                band.weights[there] += window[here]
        self._done += 1
        self.report.progress("segmenting", self._done, len(self.starts))

    def _place(self, start: Start) -> tuple[slice, slice, slice]:
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
        told = f"Memory ran out after {self._done} of {len(self.starts)} tiles; {step}. Finished tiles are kept."
        self.report.warning("out_of_memory_step", told, "A larger --spacing needs less memory.")

    def _sums_to_system(self, plan: MemoryPlan) -> None:
        for band in self._open:
            band.logits, band.weights = band.logits.to(CPU), band.weights.to(CPU)
        self._air = None if self._air is None else self._air.to(CPU)
        self.plan = replace(plan, accumulate=CPU)
