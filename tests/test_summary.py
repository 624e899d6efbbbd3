import json
from types import SimpleNamespace

from cai_jax import summary


def test_an_alarm_of_an_rl_step_ends_the_output_and_is_in_the_summary(tmp_path):
    alarms = {"rl": "iteration 9: it fell", "calm": "", "unjudged": None}
    for name, alarm in alarms.items():
        (tmp_path / name).mkdir()
        counts = {"records": 1} | ({} if alarm is None else {"alarm": alarm})
        manifest = {"kind": "ppo", "seconds": 1.0, "counts": counts}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    steps = [SimpleNamespace(name=name, kind="ppo") for name in (*alarms, "unfinished")]
    said = [text for text in summary.closing(tmp_path, steps) if "ALARM" in text]
    assert said == ["ALARM in rl: iteration 9: it fell"]
    summary.write_summary(tmp_path, steps, seed=0)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["steps"]["rl"]["alarm"] == "iteration 9: it fell"
