"""The page's style sheet and script, which stand beside this file."""

from importlib import resources


def _beside(name: str) -> str:
    return resources.files("cai_jax.page").joinpath(name).read_text(encoding="utf-8")


STYLE = _beside("report.css")
SCRIPT = _beside("report.js")
