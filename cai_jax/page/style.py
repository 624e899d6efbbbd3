"""The page's style sheet: two schemes by preference, one column, legible on a phone."""

STYLE = """
:root { --paper:#fdfdfc; --ink:#1b1d20; --soft:#565d68; --rule:#d9dde3; --card:#f3f5f7;
  --warn:#8a3b00; --warn-card:#fff4e8;
  --s0:#1f5fbf; --s1:#b4480f; --s2:#0b7a63; --s3:#7a3fc0; --s4:#b0256b; --s5:#6b6a12; }
@media (prefers-color-scheme: dark) {
:root { --paper:#14161a; --ink:#e7e9ec; --soft:#a4abb6; --rule:#343943; --card:#1d2026;
  --warn:#ffb27a; --warn-card:#2c2118;
  --s0:#7db1ff; --s1:#ff9d5c; --s2:#4fd1b0; --s3:#c39bff; --s4:#ff86b8; --s5:#d3d05a; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0 auto; padding:1.2rem 1rem 4rem; max-width:62rem; background:var(--paper);
  color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
h1 { font-size:1.7rem; line-height:1.2; margin:.4rem 0; }
h2 { font-size:1.3rem; margin:2.4rem 0 .6rem; padding-top:.8rem; border-top:1px solid var(--rule); }
h3 { font-size:1.02rem; margin:1.4rem 0 .4rem; }
p { margin:.5rem 0; max-width:46rem; }
small, .note, figcaption { color:var(--soft); font-size:.88rem; }
a { color:var(--s0); }
nav { display:flex; flex-wrap:wrap; gap:.2rem 1rem; margin:.8rem 0; }
.statement { border-left:4px solid var(--s0); background:var(--card); padding:.6rem .9rem;
  margin:1rem 0; max-width:46rem; }
.scroll { overflow-x:auto; margin:.6rem 0; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.93rem; }
th, td { text-align:right; padding:.35rem .7rem; border-bottom:1px solid var(--rule);
  vertical-align:top; white-space:nowrap; }
th:first-child { text-align:left; position:sticky; left:0; background:var(--paper); }
thead th { color:var(--soft); font-weight:600; white-space:normal; vertical-align:bottom; }
tbody th { font-weight:500; }
td small { display:block; font-size:.78rem; }
.plots { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr));
  gap:1rem; }
figure { margin:0; min-width:0; display:flex; flex-direction:column; }
figure svg { margin-top:auto; }
svg { display:block; width:100%; height:auto; }
svg text { fill:var(--soft); font-size:12px; font-family:inherit; }
.grid { stroke:var(--rule); stroke-width:1; }
.axis { stroke:var(--soft); stroke-width:1; }
.line { fill:none; stroke-width:1.8; stroke-linejoin:round; }
.whisker { stroke-width:1.4; opacity:.75; }
.key { margin-left:.8rem; white-space:nowrap; color:var(--c); }
.key::before { content:""; display:inline-block; width:.9em; height:.2em; margin-right:.35em;
  vertical-align:middle; background:var(--c); }
.s0 { --c:var(--s0); } .s1 { --c:var(--s1); } .s2 { --c:var(--s2); }
.s3 { --c:var(--s3); } .s4 { --c:var(--s4); } .s5 { --c:var(--s5); }
.line, .whisker { stroke:var(--c); }
.dot { fill:var(--c); }
svg text.name { fill:var(--c); font-weight:600; }
details { margin:.5rem 0; }
summary { cursor:pointer; overflow-wrap:anywhere; padding:.45rem .2rem; }
summary:focus-visible { outline:2px solid var(--s0); outline-offset:2px; }
.gate > summary { background:var(--warn-card); color:var(--warn); border:1px solid currentColor;
  border-radius:.4rem; padding:.55rem .8rem; font-weight:600; }
.card { background:var(--card); border-radius:.4rem; padding:.1rem .8rem; }
.card[open] { padding-bottom:.6rem; }
.turn { display:grid; grid-template-columns:7.5rem minmax(0,1fr); gap:.1rem .8rem;
  margin:.35rem 0; }
.turn > :first-child { color:var(--soft); font-size:.88rem; padding-top:.1rem; }
.words { white-space:pre-wrap; overflow-wrap:anywhere; }
.round { border-top:1px dashed var(--rule); margin-top:.5rem; padding-top:.3rem; }
.tag { display:inline-block; border:1px solid currentColor; border-radius:.9rem; padding:0 .5rem;
  margin:0 .3rem .15rem 0; font-size:.78rem; color:var(--soft); white-space:nowrap; }
.tag.bad { color:var(--s1); } .tag.good { color:var(--s2); }
.bar { position:relative; display:inline-block; width:8rem; height:.6rem; background:var(--rule);
  border-radius:.3rem; overflow:hidden; vertical-align:middle; margin-right:.5rem; }
.bar > span { position:absolute; inset:0 auto 0 0; background:var(--s0); }
@media (max-width:34rem) { .turn { grid-template-columns:1fr; }
  body { padding:.8rem .8rem 3rem; } h1 { font-size:1.4rem; } }
"""
