"""Properties that hold for any input, with inputs drawn by hypothesis."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfmsd.experiments.overrides import change
from dfmsd.experiments.presets import PRESETS, resolve
from dfmsd.experiments.records import append_record, read_records
from dfmsd.experiments.settings import flat
from dfmsd.masking import channel_attention, keep_mask, spatial_attention

settings.register_profile("fast", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fast")
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "True", "no", "{}", "1,2", "none", "dfmsd", "nan", "-inf", "1e400"]),
    st.text(max_size=12),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def maps(draw):
    """An attention map with ties, and which of its cells are valid."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    count = height * width
    few = st.lists(st.integers(0, 4), min_size=count, max_size=count)
    attention = torch.tensor(draw(few), dtype=torch.float32).view(1, 1, height, width)
    inside = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return attention, torch.tensor(inside).view(1, 1, height, width)


@given(maps(), st.floats(0, 1), st.sampled_from(["high", "low", "random"]))
def test_a_mask_hides_the_share_asked_for_and_the_right_cells(drawn, ratio, select):
    attention, valid = drawn
    mask = keep_mask(attention, ratio=ratio, select=select, valid=valid)
    inside = [a for a, v in zip(attention.flatten().tolist(), valid.flatten(), strict=True) if v]
    hidden = attention[mask == 0].tolist()
    visible = attention[(mask == 1) & valid].tolist()
    assert len(hidden) == round(ratio * len(inside))
    assert (mask[~valid] == 1).all()
    if hidden and visible and select != "random":
        assert min(hidden) >= max(visible) if select == "high" else max(hidden) <= min(visible)


@given(maps(), st.floats(-1, 5))
def test_a_threshold_is_a_comparison_of_each_cell(drawn, threshold):
    attention, valid = drawn
    mask = keep_mask(attention, threshold=threshold, valid=valid)
    for keep, value, inside in zip(
        mask.flatten(), attention.flatten(), valid.flatten(), strict=True
    ):
        assert bool(keep) == (not inside or value.item() <= torch.tensor(threshold).item())


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 100), st.integers())
def test_attention_has_mean_one_whatever_the_sign(channels, height, width, temperature, seed):
    draw = torch.Generator().manual_seed(seed % 2**63)
    feature = torch.randn(2, channels, height, width, generator=draw)
    for attention in (spatial_attention, channel_attention):
        found = attention(feature, temperature=temperature)
        assert (found >= 0).all()
        assert found.flatten(1).mean(1).tolist() == pytest.approx([1, 1], rel=1e-4)
        torch.testing.assert_close(found, attention(-feature, temperature=temperature))


@given(st.sampled_from(sorted(PRESETS)), st.data())
def test_a_setting_takes_a_value_or_says_in_one_line_why_not(preset, data):
    base = resolve(preset, scale="quick")
    key = data.draw(st.sampled_from(sorted(flat(base))))
    text = data.draw(VALUES)
    words = ""
    try:
        found = flat(change(base, {key: text}))
    except ValueError as error:
        words, found = str(error), {}
    assert bool(found) or key.rpartition(".")[2] in words
    value = found.get(key)
    numbers = value if isinstance(value, tuple) else (value,)
    assert all(math.isfinite(n) for n in numbers if isinstance(n, float)), (key, text)
    if found:
        again = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert flat(change(base, {key: again})) == found


@given(st.dictionaries(st.text(), JSON, max_size=5))
@SHARED_FOLDER
def test_a_record_comes_back_as_it_was(tmp_path, record):
    file = tmp_path / "records.jsonl"
    file.unlink(missing_ok=True)
    append_record(file, {"first": 1})
    append_record(file, record)
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    assert read_records(file) == [{"first": 1}, finite]
