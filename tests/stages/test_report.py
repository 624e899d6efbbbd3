import html.parser
import json
import re
import shutil

import pytest
from synthetic import make_workdir

from cai_jax import report as job
from cai_jax.errors import InputError
from cai_jax.page.records import spread
from cai_jax.sandbox import language
from cai_jax.stages import report

HOSTILE = "<script>alert('x')</script><img src=http://example.org/a onerror=alert(1)>\"'&"
VOID = {"meta", "br"}


class Reader(html.parser.HTMLParser):
    """Checks that elements nest, and notes where text stands."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((data, [name for _, name in self.open]))


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("run") / "work", hostile=HOSTILE)
    return report.page(report.default_config(), report.discover(workdir))


def test_text_of_models_is_escaped(page):
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    reader = read(page)
    assert not reader.tags & {"script", "img", "iframe", "link", "object", "base", "form"}
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_nothing_is_fetched(page):
    references = [v for k, v in read(page).attributes if k in ("href", "src", "action", "data")]
    assert references and all(value.startswith("#") for value in references)
    assert "url(" not in page and "@import" not in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {value[1:] for value in references} <= anchors


def test_text_of_models_stands_behind_the_warning(page):
    found = [classes for text, classes in read(page).texts if "alert('x')" in text]
    assert len(found) > 50
    assert all("gate" in classes for classes in found)
    assert "may contain harmful or offensive text" in page


def test_says_what_the_numbers_are_worth(page):
    words = " ".join(text for text, _ in read(page).texts)
    assert "say nothing about real language models" in words
    for heading in ("Evaluation", "Training", "Critiques and revisions", "RL samples", "Feedback"):
        assert f">{heading}</h2>" in page


def test_shows_the_numbers_of_the_evaluation(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    path = workdir / "evaluate" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["models"]["rl_cai"] |= {"harmless_rate": 0.91234, "harmlessness_elo": 201.6}
    evaluation["models"]["rl_cai"]["intervals"]["harmless_rate"] = [0.8765, 0.9501]
    path.write_text(json.dumps(evaluation))
    page = report.page(report.default_config(), report.discover(workdir))
    assert "<td>0.912<small>0.876 to 0.950</small></td>" in page
    assert "<td>202<small>" in page
    # Measures without a case show a dash, not a number.
    assert "<td>–<small>n = 0</small></td>" in page


def test_shows_principles_labels_and_raw_log_probabilities(page):
    principles = [language.principle_json(*p) for p in language.constitution_focuses().items()]
    for wording in ("critique_request", "comparison"):
        assert any(f"{p['id']}: {p[wording]}" in page for p in principles)
    assert "P(A is better) = 0.100" in page
    assert "log P( (A)) = -2.303, log P( (B)) = -0.105; response A stood at (A)" in page
    assert "Iteration 0: mean PM score 0.015 over 4 samples" in page


def test_a_copied_workdir_gives_the_same_bytes(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "here" / "a")
    (tmp_path / "there").mkdir()
    copy = shutil.copytree(workdir, tmp_path / "there" / "b")
    job.main([str(workdir)])
    job.main([str(copy), f"--out={tmp_path / 'page.html'}"])
    page = (workdir / "report" / "index.html").read_bytes()
    assert page == (tmp_path / "page.html").read_bytes()
    assert str(tmp_path) not in page.decode()
    assert capsys.readouterr().out.splitlines()[0] == str(workdir / "report" / "index.html")


def test_the_step_and_the_job_write_the_same_page(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    steps = [path for path in workdir.iterdir() if path.name != "unfinished"]
    (workdir / "report").mkdir()
    inputs = {"steps": steps[:2], "others": {"more": steps[2:]}}
    assert report.run(report.default_config(), inputs, workdir / "report")["records"] == 6
    step_page = (workdir / "report" / "index.html").read_bytes()
    job.main([str(workdir)])
    assert (workdir / "report" / "index.html").read_bytes() == step_page


def test_steps_stand_after_what_they_read(tmp_path):
    steps = report.discover(make_workdir(tmp_path / "w"))
    names = ["revise", "sl_cai", "labels", "pm", "rl_cai", "evaluate"]
    assert [step.name for step in report.in_order(steps)] == names
    assert [step.name for step in report.in_order(reversed(steps))] == names


def test_a_lone_surrogate_is_refused_with_file_line_and_field(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "w")
    rollouts = workdir / "rl_cai" / "rollouts.jsonl"
    rollouts.write_text(rollouts.read_text().replace("instead", r"\ud800", 1))
    with pytest.raises(SystemExit):
        job.main([str(workdir)])
    errors = capsys.readouterr().err
    assert re.search(r"rollouts\.jsonl:\d+: response: expected text, found the lone", errors)
    assert not (workdir / "report" / "index.html").exists()


def test_bad_workdirs_are_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="expected the workdir of a run, found no folder"):
        report.discover(tmp_path / "none")
    for arguments in ([str(tmp_path)], [], [str(tmp_path), "--ouy=x"]):
        with pytest.raises(SystemExit) as stopped:
            job.main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_spread_is_even_and_holds_both_ends():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread(range(3), 1) == [0]


def test_choices_and_ratings_have_their_tables_and_no_judge_is_missed(tmp_path):
    level = {"level": 0.95, "anchor": "", "games": "soft", "agreement": {}}
    measure = {"accuracy": 0.6789, "contexts": 3, "ece": 0.1, "option_ece": 0.2, "by_answer": {}}
    measure |= {"option_calibration": [{"probability": 0.5, "frequency": 0.25, "n": 4}]}
    elo = {"models": {"rl": {"helpfulness_elo": 12.3}}, "ratings": {}}
    files = {
        "answers": ("evaluate", {"judge": "none", "models": {}}),
        "choices": (
            "evaluate_choices",
            level | {"sets": {f"hhh{HOSTILE}": {"zero_shot": measure}}},
        ),
        "ratings": ("elo", level | {"judges": {"people": elo}}),
    }
    for name, (kind, found) in files.items():
        folder = tmp_path / "w" / name
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps(found))
        manifest = {"kind": kind, "seconds": 1, "records": 1, "tokens": 1}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    page = report.page(report.default_config(), report.discover(tmp_path / "w"))
    read(page)
    assert "<script" not in page and "choices: hhh&lt;script&gt;" in page
    assert "<td>0.679</td>" in page and "<td>12</td>" in page
    assert "No judge read the answers" not in page
