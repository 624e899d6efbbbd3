import numpy as np
import pytest

from cai_jax.errors import InputError
from cai_jax.models import score_statistics


def test_scores_of_the_reference_set_have_mean_0_and_deviation_1(tmp_path):
    scores = np.array([[3.0, 5.0], [7.0, 9.0]], np.float32)
    written = score_statistics.write(tmp_path, scores, ["held_out"])
    assert written == (6.0, pytest.approx(np.sqrt(5)))
    found = score_statistics.read(tmp_path)
    assert found == written
    normal = found.normalised(scores)
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=1e-12)


def test_scores_that_are_all_the_same_keep_their_unit(tmp_path):
    assert score_statistics.write(tmp_path, np.full(3, 2.0), []) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected the statistics of the model's scores, found none"),
        ("{", "expected mean and std, numbers"),
        ('{"mean": 1.0}', "expected mean and std, numbers: 'std'"),
        ('{"mean": 1.0, "std": 0.0}', "std: expected a number above 0, found 0.0"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / score_statistics.FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        score_statistics.read(tmp_path)
