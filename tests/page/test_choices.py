import re
from collections import namedtuple

from cai_jax.algorithms.choices import choice_measures
from cai_jax.algorithms.intervals import estimates
from cai_jax.data.schema import Answer, Turn
from cai_jax.page.choices import choice_tables, rating_tables, refusal_tables
from cai_jax.page.records import answers_view

Choice = namedtuple("Choice", "context correct chosen probabilities mass")
HOSTILE = "<script>alert('x')</script>"
NAMES = [HOSTILE, "Violence & more"]


def measured(p):
    choices = [Choice(f"{i}", i % 2, 0, (p, 1 - p), 0.5) for i in range(8)]
    return choice_measures(choices, NAMES, seed=0, num_resamples=50)


def test_accuracy_calibration_and_answers_of_an_evaluation():
    modes = {"zero_shot": measured(0.75), "preference_model": measured(0.6)}
    del modes["preference_model"]["mass"]
    page = "".join(choice_tables(modes, 0.95))
    assert "<script" not in page and "&lt;script&gt;" in page and "Violence &amp; more" in page
    flat = re.sub(r"<small>.*?</small>", "", page)
    # Half are right; confidence .75: log-loss (ln 4/3 + ln 4) / 2 = 0.837, ECE .25.
    row = flat[flat.index("zero-shot</th>") : flat.index("preference model</th>")]
    assert re.findall(r"<td>(.*?)</td>", row) == ["0.500", "0.837", "0.25", "0.25", "0.500"]
    row = flat[flat.index("preference model</th>") :]
    assert re.findall(r"<td>(.*?)</td>", row)[4] == "–"
    assert "over 8 contexts" in page and "95 % bootstrap intervals" in page
    # All that is right at the first answer, nothing at the second.
    row = flat[flat.rindex("Violence") :]
    assert re.findall(r"<td>(.*?)</td>", row)[:2] == ["0.000", "0.000"]
    assert page.count('class="line ') == 3  # both modes, and what calibrated would be


def test_ratings_judges_and_agreement():
    of = {
        "models": {
            f"rl{HOSTILE}": {
                "harmlessness_elo": 81.6,
                "intervals": {"harmlessness_elo": [40.2, 120.9]},
                "n": {"harmlessness_elo": 30},
            },
            "sl": {"harmlessness_elo": 0.0, "intervals": {"harmlessness_elo": [0.0, 0.0]}, "n": {}},
        },
        "ratings": {
            "harmlessness_elo": {"judgements": 33, "ties": 3, "prompts": 11, "annotators": 2}
        },
    }
    found = {
        "level": 0.9,
        "anchor": "sl",
        "games": "hard",
        "judges": {"people": of, "preference_model": of},
        "agreement": {
            "preference_model/people": estimates({"agreement": [(1.0, 1), (0.0, 2)]}, seed=0)
        },
    }
    page = "".join(rating_tables(found))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<td>82<small>40 to 121</small></td>" in page
    assert "33 judgements by 2 people on 11 prompts, of which 3 ties, left out" in page
    assert "90 % bootstrap intervals over prompts. Elo 0 is sl." in page
    assert "did not see whose answers" in page and "an opinion, not the truth" in page
    assert "preference model and people" in page and "<td>0.500<small>" in page


def test_refusals_by_label_and_type():
    def shares(full, partial):
        cases = {
            "partial_refusal": [(float(i < partial), i) for i in range(4)],
            "full_refusal": [(float(i >= 4 - full), i) for i in range(4)],
        }
        return estimates(cases, seed=0)

    safe, unsafe = shares(1, 2), shares(4, 0)
    safe["by_type"] = {HOSTILE: shares(1, 2)}
    unsafe["by_type"] = {"contrast": shares(4, 0)}
    page = refusal_tables({"rl": {"safe": safe, "unsafe": unsafe}})
    assert "<script" not in page and "&lt;script&gt;" in page
    flat = re.sub(r"<small>.*?</small>", "", page)
    rows = re.findall(r"<tr>(.*?)</tr>", flat)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert cells[1] == ["0.250", "0.500", "1.000", "0.000"]
    assert cells[3] == ["safe", "0.250", "0.500"] and cells[4] == ["unsafe", "1.000", "0.000"]
    assert "n = 4" in page and "rl: by type of prompt" in page


def test_an_answer_shows_how_it_refuses():
    answers = [
        Answer("1", "xstest", model, (Turn("human", "q"),), "no", "stop", {"refusal": kind})
        for model, kind in (("one", "full"), ("two", "none"))
    ]
    tags = [part.get("tags") for part in answers_view(answers)["parts"]]
    assert tags == [None, [["full refusal", ""]], []]
