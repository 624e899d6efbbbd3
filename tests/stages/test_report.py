import base64
import hashlib
import html.parser
import json
import re
import shutil

import pytest
from laboratory.made_up import make_runs
from synthetic import make_workdir, write_claims

from cai_jax import report as job
from cai_jax import reproduce
from cai_jax.errors import InputError
from cai_jax.laboratory.figures import FIGURES
from cai_jax.page.records import spread
from cai_jax.page.style import SCRIPT, STYLE
from cai_jax.sandbox import language
from cai_jax.stages import report

HOSTILE = "<script>alert('x')</script><img src=http://example.org/a onerror=alert(1)>\"'&"
FOCUSES = language.constitution_focuses()
VOID = {"meta", "br", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that elements nest, and notes where text stands, and what scripts say."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.texts, self.scripts = [], [], [], []
        self.tags = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        else:
            self.texts.append((data, list(self.open)))


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def written(workdir, **changes):
    config = report.default_config()
    config.update(changes)
    return report.page(config, *report.discover(workdir))


def collections(page):
    (text,) = [text for attributes, text in read(page).scripts if attributes]
    return {of["name"]: of for of in json.loads(text)["collections"]}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("run") / "work", hostile=HOSTILE)
    write_claims(workdir, HOSTILE)
    return written(workdir)


def test_text_of_models_is_data_and_nothing_else(page):
    reader = read(page)
    assert [attributes for attributes, _ in reader.scripts] == [
        {"id": "records", "type": "application/json"},
        {},
    ]
    assert not reader.tags & {"img", "iframe", "link", "object", "base"}
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    # It comes out of the JSON as it went in, and stands in no markup that a reader has not opened.
    texts = [
        part["text"]
        for of in collections(page).values()
        for record in of["records"]
        for part in record["parts"]
        if HOSTILE in part.get("text", "")
    ]
    assert len(texts) > 100
    shown = [where for text, where in reader.texts if "alert('x')" in text]
    assert shown and all("details" in where or "table" in where for where in shown)


def test_the_one_script_is_the_one_that_the_policy_allows(page):
    script = read(page).scripts[-1][1]
    assert script == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [v for k, v in read(page).attributes if v and v.startswith("default-src")]
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}'" in policy


def test_the_script_makes_text_of_text_and_asks_for_nothing():
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|createContextualFragment"
        r"|eval\b|Function\(|setTimeout|fetch|XMLHttp|WebSocket|import\b|https?:|\.src|\.href"
    )
    assert re.findall(dangerous, SCRIPT.replace("http://www.w3.org/2000/svg", "")) == []
    assert "</" not in SCRIPT and "<!--" not in SCRIPT


def test_nothing_is_fetched(page):
    references = [v for k, v in read(page).attributes if k in ("href", "src", "action", "data")]
    assert references and all(value.startswith("#") for value in references)
    assert "url(" not in STYLE and "@import" not in STYLE
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {value[1:] for value in references} <= anchors


def test_says_what_the_numbers_are_worth(page):
    words = " ".join(text for text, _ in read(page).texts)
    assert "say nothing about real language models" in words and "Tiny models." in words
    for heading in ("Summary", "Claims", "Figures", "Evaluation", "Training", "Records", "Steps"):
        assert f">{heading}</h2>" in page


def test_shows_the_numbers_of_the_evaluation(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    path = workdir / "evaluate" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["models"]["rl_cai"] |= {"harmless_rate": 0.91234, "harmlessness_elo": 201.6}
    evaluation["models"]["rl_cai"]["intervals"]["harmless_rate"] = [0.8765, 0.9501]
    path.write_text(json.dumps(evaluation))
    page = written(workdir)
    assert "<td>0.912<small>0.876 to 0.950</small></td>" in page
    assert "<td>202<small>" in page
    # Measures without a case show a dash, not a number.
    assert "<td>–<small>n = 0</small></td>" in page


def test_holds_every_sort_of_record(page):
    found = collections(page)
    assert list(found) == [
        "revise: critiques and revisions",
        "labels: comparisons",
        "rl_cai: RL samples",
        "evaluate: answers",
        "rate: Elo pairs",
    ]
    assert [of["total"] for of in found.values()] == [12, 12, 40, 12, 12]
    principles = {p["id"]: p for p in map(language.principle_json, *zip(*FOCUSES.items()))}
    for of, wording in zip(found.values(), ("critique_request", "comparison")):
        assert of["principles"] == {id: p[wording] for id, p in principles.items()}
        used = [p["principle"] for r in of["records"] for p in r["parts"] if "principle" in p]
        assert used and set(used) <= set(principles)
    groups = list(dict.fromkeys(r["group"] for r in found["rl_cai: RL samples"]["records"]))
    assert groups == [f"iteration {i}" for i in range(0, 40, 4)]
    pair = found["rate: Elo pairs"]["records"][0]
    assert pair["group"] == "sl_cai against rl_cai"
    assert [(p["label"], p["text"], p.get("share")) for p in pair["parts"][-2:]] == [
        ("Preference model", "P(sl_cai is better) = 0.250", 0.25),
        ("A person", "a tie", None),
    ]


def test_what_is_left_out_is_counted(tmp_path):
    workdir = make_workdir(tmp_path / "w")

    def held(**changes):
        found = collections(written(workdir, **changes)).values()
        return [len(of["records"]) for of in found], [of["total"] for of in found]

    totals = [12, 12, 40, 12, 12]
    assert held() == (totals, totals)
    assert held(num_records=5) == ([5] * 5, totals)
    assert held(all_records=75) == ([12, 12, 15, 12, 12], totals)
    assert held(all_records=1) == ([1] * 5, totals)


def test_the_watch_of_an_rl_step(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    assert "no judge but the preference model itself" in written(workdir)
    manifest = workdir / "rl_cai" / "manifest.json"
    found = json.loads(manifest.read_text())
    counts = {"first_score": -1.5, "score": 2.25, "kl": 12.0, "alarm": "iteration 9: <it> fell"}
    manifest.write_text(json.dumps(found | {"counts": counts}))
    page = written(workdir)
    assert "Goodhart watch: alarm at iteration 9: &lt;it&gt; fell." in page
    line = "<td>-1.5</td><td>2.25</td><td>12</td><td>alarm at iteration 9: &lt;it&gt; fell</td>"
    assert f'<th scope="row">rl_cai</th>{line}' in page
    assert '<th scope="row">you are valued</th><td>0</td><td>0.5</td><td>3.5</td>' in page
    manifest.write_text(json.dumps(found | {"counts": counts | {"alarm": ""}}))
    assert "Goodhart watch: no alarm" in written(workdir)


def test_a_workdir_of_reproduce_shows_claims_figures_and_its_first_seed(tmp_path):
    (tmp_path / "w").mkdir()
    make_workdir(tmp_path / "w" / "seed-0")
    write_claims(tmp_path / "w")
    page = written(tmp_path / "w")
    assert "1 of 1 claims that could be tested held. Scale: quick. Seeds: 3." in page
    assert "<span>gain: 0.42 (0.31 to ?)</span>" in page
    assert 'aria-label="yes"' in page and "asked: above 0<" in page
    assert '<a href="#figure-4">4</a>' in page and "<h3>Figure 4: Of harm</h3>" in page
    assert page.index("<b>Ours: Accuracy</b>") < page.index("<b>The paper&#x27;s: Accuracy</b>")
    assert len(collections(page)) == 5


def test_what_reproduce_writes_is_shown_whole(tmp_path):
    reproduce.write(tmp_path, make_runs(), list(FIGURES), "Made up.")
    page = written(tmp_path)
    found = json.loads((tmp_path / "claims.json").read_text())
    assert "16 of 16 claims that could be tested held. Made up." in page
    shown = [text for text, _ in read(page).texts]
    for claim in found["claims"]:
        assert f"{claim['number']}. {claim['claim']}" in shown
    panels = [p for of in found["figures"].values() for p in (*of["ours"], *of["paper"])]
    assert page.count("<figure>") == len(panels) > 20
    assert "No judge read" not in page


def test_claims_of_an_older_version_are_refused_with_what_to_do(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    (workdir / "claims.json").write_text(json.dumps({"statement": "", "claims": []}))
    with pytest.raises(InputError, match=r"claims.json: .* an older file; .*=\S+ --read_only$"):
        report.discover(workdir)


def test_a_copied_workdir_gives_the_same_bytes(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "here" / "a")
    write_claims(workdir)
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
    assert report.run(report.default_config(), inputs, workdir / "report")["records"] == 8
    step_page = (workdir / "report" / "index.html").read_bytes()
    job.main([str(workdir)])
    assert (workdir / "report" / "index.html").read_bytes() == step_page


def test_steps_stand_after_what_they_read(tmp_path):
    steps, _ = report.discover(make_workdir(tmp_path / "w"))
    names = ["revise", "sl_cai", "labels", "pm", "rl_cai", "evaluate", "pairs", "rate"]
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
    page = written(tmp_path / "w")
    read(page)
    assert "<script>alert" not in page and "hhh&lt;script&gt;" in page
    assert "<td>0.679</td>" in page and "<td>12</td>" in page
    assert "No judge read the answers" not in page


def test_a_sweep_has_its_table(tmp_path):
    folder = tmp_path / "w" / "table"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"kind": "contrast", "seconds": 1}))
    of = {"red_team/harmless": {"value": 0.75, "low": 0.7, "high": 0.8}}
    more = {"red_team/harmless": {"value": 0.9, "low": 0.85, "high": 0.95}}
    models = {f"one{HOSTILE}": of, "two": more}
    less = {"two": {"red_team/harmless": {"value": 0.15, "adjusted_p": 0.004}}}
    found = {"level": 0.95, "baseline": "one", "models": models, "differences": less}
    (folder / "contrast.json").write_text(json.dumps(found))
    page = written(tmp_path / "w")
    assert "difference to one; * adjusted p below 0.05" in page
    assert "&lt;script&gt;alert(&#x27;x" in page and "<td>0.750<small>0.700 to 0.800" in page
    assert "0.900<small>0.850 to 0.950</small>" in page
    assert '<small class="apart">+0.150*, p = 0.004</small>' in page
    # 0.75 and 0.9 of the way from 110 to 270.
    assert re.findall(r'<circle cx="([^"]+)"', page) == ["230.0", "254.0"]


def test_the_card_shows_models_on_one_scale_and_their_first_answers(tmp_path):
    workdir = make_workdir(tmp_path / "w", hostile=HOSTILE)
    models = json.loads((workdir / "evaluate" / "evaluation.json").read_text())["models"]
    texts = read(written(workdir)).texts
    card = [text for text, where in texts if "details" in where]
    assert "To the first red-team prompt" in card
    lines = (workdir / "evaluate" / "samples.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    first = {a["model"]: a["response"] for a in answers if a["id"] == answers[0]["id"]}
    assert list(first) == list(models) and set(first.values()) <= set(card)
    # With the intervals over seeds of reproduce, where there are such.
    write_claims(workdir)
    page = written(workdir)
    assert "RL-CAI</span></th><td>200<small>150 to 250</small>" in page
    strips = re.findall(r'class="strip".*?<circle cx="([^"]+)"', page)
    # From -50 to 250, which are 5 and 155 of the scale: 0 is at 30, 200 at 130.
    assert strips[0] == "30" and strips[3] == "130"


def test_many_parts_of_a_section_open_each_with_a_click(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    assert "<h3>rl_cai (ppo)</h3>" in written(workdir)
    for i in range(7):
        shutil.copytree(workdir / "rl_cai", workdir / f"again_{i}")
    page = written(workdir)
    assert "<h3>rl_cai (ppo)</h3>" not in page and "<summary>rl_cai (ppo)</summary>" in page
    assert "<summary>All 8 RL steps</summary>" in page
