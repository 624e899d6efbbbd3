import pytest

from cai_jax import costs
from cai_jax.core import topology
from cai_jax.errors import InputError


def test_names_are_generations_and_sizes():
    assert topology.parse("v5p:4x4x8") == ("v5p", (4, 4, 8))
    assert topology.parse("v6e:16x16") == ("v6e", (16, 16))
    assert topology.parse("cpu:8") == ("cpu", (8,))
    assert topology.parse("h100:2x8") == ("h100", (2, 8))


@pytest.mark.parametrize(
    "name", ["v5p", "v5p:4x4", "v6e:4x4x4", "v5e:0x4", "h100:8", "a100:1x8", "cpu:a", ""]
)
def test_what_is_no_topology_is_refused_with_examples(name):
    with pytest.raises(InputError, match="expected v4:AxBxC.*as v5p:4x4x4"):
        topology.parse(name)


def test_more_simulated_devices_than_there_are_are_refused():
    with pytest.raises(InputError, match="topology cpu:9: expected 9 devices, found 8"):
        topology.describe("cpu:9")
    assert len(topology.describe("cpu:4").devices) == 4


def test_chips_are_those_of_the_planner():
    for name in set(topology.CHIPS) & set(costs.HARDWARE):
        chip, hardware = topology.CHIPS[name], costs.HARDWARE[name]
        assert chip.flops == hardware.flops
        assert chip.bandwidth == pytest.approx(hardware.bandwidth, rel=0.01)
        assert chip.memory == pytest.approx(hardware.memory, rel=0.08)  # GB there, GiB here
