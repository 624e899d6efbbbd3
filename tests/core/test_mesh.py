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
