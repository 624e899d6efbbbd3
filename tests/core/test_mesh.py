from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from cai_jax.core import mesh
from cai_jax.errors import InputError


def config(data: int, fsdp: int, tensor: int) -> ConfigDict:
    return ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.mark.parametrize(
    ("axes", "devices", "shape"),
    [
        ((1, 1, 1), 8, (1, 1, 1)),
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((1, 1, -1), 1, (1, 1, 1)),
        ((4, 16, 4), 256, (4, 16, 4)),
        ((2, 1, 2), 8, (2, 1, 2)),
    ],
)
def test_minus_one_takes_what_the_others_leave(axes, devices, shape):
    assert mesh.mesh_shape(config(*axes), devices) == shape


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((0, 1, 1), "data=0 x fsdp=1 x tensor=1: expected positive sizes"),
        ((-1, -1, 1), "at most one of them -1"),
        ((-2, 1, 1), "expected positive sizes"),
        ((3, -1, 1), "3 does not divide the 8 devices found"),
        ((16, 1, 1), "expected 16 devices, found 8; choose a smaller mesh"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(InputError, match=message):
        mesh.mesh_shape(config(*axes), 8)


def test_the_mesh_has_the_named_axes_of_type_auto_over_the_first_devices():
    made = mesh.make_mesh(config(2, 1, 2))
    assert dict(made.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
    # Explicit, which is the default of jax.make_mesh, would demand a sharding of every product.
    assert made.axis_types == (jax.sharding.AxisType.Auto,) * 3
    assert {d.id for d in made.devices.flat} == {0, 1, 2, 3}
    assert mesh.make_mesh(mesh.default_config()).size == 1


def torus(slice_index=0):
    """4 x 4 x 4 chips."""
    return [
        SimpleNamespace(
            id=64 * slice_index + i,
            platform="tpu",
            device_kind="TPU v5",
            coords=(i % 4, i // 4 % 4, i // 16),
            core_on_chip=0,
            process_index=i // 4,
            slice_index=slice_index,
        )
        for i in range(64)
    ]


@pytest.mark.parametrize("sizes", [(2, 64, 1), (4, 8, 4), (2, 8, 8)])
def test_slices_lie_along_data(sizes):
    arranged = mesh._arranged(sizes, torus(0) + torus(1))
    assert arranged.shape == sizes
    # Each half of the data axis is one slice, laid out as a slice alone is.
    half = mesh._arranged((sizes[0] // 2, *sizes[1:]), torus(0))
    expected = [[chip.id for chip in half.flat], [64 + chip.id for chip in half.flat]]
    parts = arranged[: len(half)], arranged[len(half) :]
    assert [[chip.id for chip in part.flat] for part in parts] == expected


def test_chips_of_a_described_topology_say_nothing_of_slices():
    chips = torus()
    for chip in chips:
        del chip.slice_index
    assert mesh._arranged((1, 64, 1), chips).shape == (1, 64, 1)


def test_slices_that_data_does_not_divide_over_are_refused():
    with pytest.raises(InputError, match="mesh data=1: expected a multiple of 2, the number of sl"):
        mesh._arranged((1, 128, 1), torus(0) + torus(1))


@pytest.mark.parametrize("sizes", [(1, 64, 1), (1, 16, 4), (1, 8, 8), (2, 8, 4), (1, 2, 32)])
def test_every_factorisation_is_laid_on_a_torus(sizes):
    """Of 4 x 4 x 4 chips, also where no set of its axes has the size of a mesh axis."""
    chips = torus()
    arranged = mesh._arranged(sizes, chips)
    assert arranged.shape == sizes
    assert sorted(chip.id for chip in arranged.flat) == list(range(64))
    # Neighbours along the last axis are neighbours on the torus, but for corners of the path.
    last = arranged.reshape(-1, sizes[-1])
    for row in last[:, :2]:
        if len(row) == 2:
            steps = [min(abs(a - b), 4 - abs(a - b)) for a, b in zip(*(c.coords for c in row))]
            assert sum(steps) <= 2
