"""NumPy arrays and torch tensors through the same code."""

import numpy as np
import pytest
import torch

from robopolicy.arrays import copied, like, namespace, row

KINDS = {"numpy": lambda values: np.array(values), "torch": lambda values: torch.tensor(values, dtype=torch.float64)}


@pytest.fixture(params=KINDS)
def array(request):
    return KINDS[request.param]([[1.0, 2.0], [3.0, 4.0]])


def test_an_array_tells_its_namespace(array):
    """Guards against: work on tensors by NumPy, which would carry them to the host and back."""
    xp = namespace(array)
    assert type(xp.stack([array, array])) is type(array)


def test_a_constant_takes_the_arrays_kind_and_precision(array):
    """Guards against: a constant in double precision, which would make everything after it as slow."""
    constant = like(array, np.array([0.5, 0.25]))
    assert type(constant) is type(array)
    assert (array * constant).dtype == array.dtype
    single = torch.ones(2, dtype=torch.float32)
    assert like(single, np.array([0.5])).dtype == torch.float32


def test_a_constant_index_stays_an_index(array):
    """Guards against: numbers turned to floats, which would be refused as an index."""
    assert array[:, like(array, np.array([1, 0]))].tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_a_constant_is_carried_to_the_device_once():
    """Guards against: a copy at every call, which would wait for the device, and could not be captured."""
    tensor = torch.ones(2)
    assert like(tensor, np.array([1.0, 2.0])) is like(tensor, np.array([1.0, 2.0]))
    assert like(tensor, np.array([1.0, 2.0])) is not like(tensor.double(), np.array([1.0, 2.0]))


def test_a_constant_made_without_gradients_can_be_used_with_them():
    """Guards against: a tensor made in inference mode and cached, which autograd then refuses."""
    parameter = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        like(parameter, np.array([7.0, 8.0]))
    (parameter * like(parameter, np.array([7.0, 8.0]))).sum().backward()
    assert parameter.grad.tolist() == [7.0, 8.0]


def test_a_row_is_single_precision_in_memory_of_its_own(array):
    """Guards against: a view of the simulator's state, which would change with the next step."""
    single, double = row(array), row(array, array[:, :1] > 1)
    assert str(single.dtype).endswith("float32")
    assert double.dtype == single.dtype
    assert double.tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 1.0]]
    copy = copied(array)
    array[:] = 0
    assert single.tolist() == copy.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_row_of_a_single_part_is_a_copy_even_where_nothing_is_cast():
    """Guards against: a row that shares memory with the physics' state where nothing is cast."""
    tensor = torch.ones(2, 2)
    seen = row(tensor)
    tensor[:] = 0
    assert seen.tolist() == [[1.0, 1.0]] * 2
