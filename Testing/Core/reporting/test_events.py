"""Events: each is one complete line of ASCII JSON, and no other line is taken for an event."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from HiEndMAECore.reporting import events

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def finite(value: object) -> object:
    """Return `value` with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return value


@settings(deadline=None)
@given(st.sampled_from(sorted(events.KINDS)), st.data())
def test_decode_of_encode_returns_the_event(kind: str, data: st.DataObject) -> None:
    fields = {name: data.draw(JSON) for name in (*events.KINDS[kind], "extra")}
    line = events.encode(kind, **fields)
    assert line.isascii()
    assert "\n" not in line
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed == events.decode(line) == {"v": 1, "event": kind, **finite(fields)}


def test_encode_scalars_of_numpy_and_torch_gives_numbers() -> None:
    line = events.encode(
        "metric", name="loss", value=np.float32(0.5), n=np.int64(3), t=torch.tensor(2.0), x=np.float32("nan")
    )
    event = events.decode(line)
    assert event is not None
    assert (event["value"], event["n"], event["t"], event["x"]) == (0.5, 3, 2.0, None)


def test_encode_incomplete_or_unknown_event_raises() -> None:
    with pytest.raises(ValueError, match="advice"):
        events.encode("failed", code="x", message="y")
    with pytest.raises(ValueError, match="banana"):
        events.encode("banana")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Downloading: 100%",
        "3",
        "null",
        "[]",
        "[" * 100_000,
        '{"v": 1}',
        '{"v": 1, "event": "banana"}',
        '{"v": 1, "event": ["metric"]}',
        '{"v": 2, "event": "preview", "path": "x"}',
        '{"event": "preview", "path": "x"}',
        '{"v": 1, "event": "preview"}',
        '{"v": 1, "event": "preview", "path": "x"} and more',
    ],
)
def test_decode_line_that_is_no_event_returns_none(line: str) -> None:
    assert events.decode(line) is None


@settings(deadline=None)
@given(st.text() | JSON.map(json.dumps))
def test_decode_any_text_does_not_raise(line: str) -> None:
    assert events.decode(line) is None
