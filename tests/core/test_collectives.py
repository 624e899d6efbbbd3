"""What must be sent, against sums done by hand."""

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cai_jax.core import collectives, mesh

WEIGHTS, NORMS = 64 * 32, 10


def required(sizes, **changes):
    axes = ConfigDict(dict(zip(mesh.AXES, sizes)))
    made = mesh.make_mesh(axes, jax.devices()[: int(np.prod(sizes))])

    def array(shape, *spec):
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(made, P(*spec)))

    params = {"weights": array((64, 32), "fsdp", "tensor"), "norms": array((NORMS,))}
    options = {"positions": 80, "width": 6, "layers": 3, "itemsize": 2, "parts": 1}
    options |= {"recomputed": True, "trained": True}
    return collectives.required_bytes(params, made, **options | changes)


def test_one_device_sends_nothing():
    assert required((1, 1, 1)) == 0


def test_fsdp_gathers_weights_twice_and_scatters_gradients_once():
    # What every device has whole is added up in an all-reduce.
    norms = 2 * 2 * NORMS * 7 / 8
    assert required((1, 8, 1)) == (2 * 2 + 2) * WEIGHTS * 7 / 8 + norms
    assert required((1, 8, 1), parts=3) == (3 * 2 * 2 + 2) * WEIGHTS * 7 / 8 + norms
    assert required((1, 8, 1), trained=False) == 2 * 2 * WEIGHTS * 7 / 8


def test_data_adds_up_the_gradients_of_a_part():
    scattered = (2 * 2 + 2) * WEIGHTS / 2
    assert required((4, 2, 1)) == scattered + 2 * 2 * (WEIGHTS / 2) * 3 / 4 + 2 * 2 * NORMS * 7 / 8


def test_tensor_adds_up_two_products_of_a_layer_in_each_pass():
    # 80 positions of 6 numbers of 2 bytes; three layers; all-reduces of two devices send it once.
    payload = 80 * 6 * 2
    assert required((1, 1, 2), recomputed=False) == 3 * 4 * payload
    assert required((1, 1, 2)) == 3 * 6 * payload
    fsdp = (2 * 2 + 2) * (WEIGHTS / 2) / 2 + 2 * 2 * NORMS / 2
    assert required((1, 2, 2)) == fsdp + 3 * 6 * payload / 2
