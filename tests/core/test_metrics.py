import json

import jax.numpy as jnp
import numpy as np

from cai_jax.core.metrics import MetricsWriter, read_metrics


def test_scalars_of_any_kind_are_written_to_seven_digits(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(np.int64(3), loss=jnp.float32(0.1), rate=1e-3, tokens=123_456_789_012)
        writer.write(4, loss=np.float32("nan"), rate=float("inf"))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 3, "loss": 0.1, "rate": 0.001, "tokens": 123456789012}'
    assert json.loads(lines[1]) == {"step": 4, "loss": None, "rate": None}


def test_float32_survives_the_rounding(tmp_path):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    with MetricsWriter(tmp_path) as writer:
        for i, value in enumerate(values):
            writer.write(i, value=value)
    read = np.array([line["value"] for line in read_metrics(tmp_path)])
    np.testing.assert_allclose(read, values, rtol=5e-7)


def test_a_line_can_be_read_before_the_file_is_closed_and_more_are_appended(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, loss=2.0)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    writer.close()
    with MetricsWriter(tmp_path) as again:
        again.write(2, loss=1.0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
