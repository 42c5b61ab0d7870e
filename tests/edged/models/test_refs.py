import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CheckpointError, UnsafeCheckpointError
from edged.models.refs import StorageRef, quoted, tensor_ref

sizes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=4)


@given(st.integers(0, 40), st.integers(0, 10), sizes)
def test_accepted_exactly_when_torch_can_view_it_without_expanding(numel, offset, dimensions):
    shape, stride = [size for size, _ in dimensions], [step for _, step in dimensions]
    storage = torch.arange(numel)
    try:
        viewed = storage.as_strided(shape, stride, offset)
    except RuntimeError:
        viewed = None
    try:
        ref = tensor_ref(StorageRef("0", torch.int64, numel), offset, shape, stride)
    except CheckpointError:
        assert viewed is None or viewed.numel() > numel
        return
    assert ref.numel <= numel
    if ref.numel:  # empty tensors are refused later, by name
        assert viewed is not None
        assert torch.equal(storage.as_strided(ref.shape, ref.stride, ref.offset), viewed)


def test_stride_zero_is_called_unsafe():
    with pytest.raises(UnsafeCheckpointError, match="expands a storage of 1 values"):
        tensor_ref(StorageRef("0", torch.float16, 1), 0, [1 << 31], [0])


@pytest.mark.parametrize("shape", [[-1], [1.5], [True], ["1"], [1] * 9, [1 << 63], None, 5])
def test_odd_shapes_are_refused(shape):
    with pytest.raises(CheckpointError, match="shape"):
        tensor_ref(StorageRef("0", torch.float32, 4), 0, shape, [1])


def test_quoted_is_short_and_on_one_line():
    assert quoted("a\nb\x1b\u2028") == r"'a\nb\x1b\u2028'"
    assert len(quoted("x" * 10_000)) == 82
    bomb: list[object] = []
    for _ in range(200):
        bomb = [bomb, bomb]
    assert quoted(bomb) == "'a list'"
