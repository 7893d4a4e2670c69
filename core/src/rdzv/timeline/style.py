"""The looks of the page. Every colour of text has a contrast of 4.5 or more with what is behind."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #18212d; --muted: #566071; --line: #e0e4ea;
  --band: #eef1f6; --link: #1f5fb0;
  --member: #2f64ad; --member-2: #4a4f9e; --on-member: #ffffff;
  --join: #e3a93b; --wait: #f1dca6; --spare: #dfe3e9; --on-light: #2a2108;
  --stop: #b9cbe4; --ranks: #2b8465; --detection: #bf4436; --last-call: #8a6cc0;
  --mark: #18212d; --alarm: #b02a1d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --card: #1a2029; --ink: #e8ecf2; --muted: #a4afbf; --line: #2e3744;
    --band: #222a36; --link: #8dbcf5;
    --member: #6ea4e8; --member-2: #9a9cec; --on-member: #0b1420;
    --join: #e0ac4a; --wait: #8f7c46; --spare: #4a5564; --on-light: #0f0c02;
    --stop: #3d5578; --ranks: #4db48e; --detection: #e2695a; --last-call: #ad93e0;
    --mark: #f2f5f9; --alarm: #ff8a7a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 84rem; margin: 0 auto; padding: 2rem 1.5rem 3rem; }
header p, footer { color: var(--muted); }
footer { font-size: 13px; margin-top: 2rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
h1, h2, td, li, p { overflow-wrap: anywhere; }
header { margin-bottom: 1.25rem; }
header p { margin: .25rem 0 0; max-width: 60rem; }
section.run + section.run { margin-top: 3.5rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.25rem; margin-top: 1rem;
}
.figures { display: flex; flex-wrap: wrap; gap: .5rem 2.75rem; margin: 0; }
.figures div { min-width: 5rem; }
.figures dt { color: var(--muted); font-size: 13px; }
.figures dd {
  margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.25; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums;
}
.warning { border-left: 4px solid var(--alarm); }
.note { border-left: 4px solid var(--link); }
.warning p, .note p { margin: 0 0 .25rem; max-width: 60rem; }
.scroll { overflow: auto; max-height: 78vh; }
.scroll:focus-visible, summary:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px;
}
.chart {
  display: grid; grid-template-columns: max-content minmax(720px, 1fr); position: relative;
  width: 100%; min-width: max-content; padding-right: 10px;
}
.chart > .corner, .chart > .axis { position: sticky; top: 0; z-index: 3; background: var(--card); }
.chart > .corner, .chart > .name { left: 0; background: var(--card); padding-right: .9rem; }
.chart > .corner { z-index: 4; font-size: 12px; color: var(--muted); align-self: stretch; }
.chart > .name {
  position: sticky; z-index: 2; grid-column: 1; white-space: nowrap; max-width: 17rem;
  overflow: hidden; text-overflow: ellipsis; display: block;
  font: 12px/1 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.chart > svg {
  grid-column: 2; display: block; width: calc(100% - 8px); margin-left: 8px; overflow: visible;
  z-index: 1;
}
.chart > svg.back { z-index: 0; height: 100%; }
svg text { font-size: 11px; font-variant-numeric: tabular-nums; }
.axis text, .axis .gap { fill: var(--muted); }
.axis .round { fill: var(--ink); font-weight: 600; }
.back .tick { stroke: var(--line); }
.back .band { fill: var(--band); }
.back .gap { fill: url(#gaps); }
#gaps path { stroke: var(--line); stroke-width: 2; }
.member { fill: var(--member); } .member.even { fill: var(--member-2); }
.block text { fill: var(--on-member); font-weight: 600; }
.join { fill: var(--join); } .wait { fill: var(--wait); } .spare { fill: var(--spare); }
.stop { fill: var(--stop); } .ranks { fill: var(--ranks); }
.detection, .silent { fill: var(--detection); } .silent { fill-opacity: .75; }
.call { fill: var(--last-call); }
.leads { fill: var(--mark); }
.mark path { stroke: var(--card); stroke-width: 3; paint-order: stroke; fill: var(--mark); }
.mark.lost path, .mark.failed path { fill: var(--alarm); }
.legend {
  display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .9rem 0 0; padding: 0;
  list-style: none; font-size: 13px; color: var(--muted);
}
.legend svg {
  width: 16px; height: 12px; vertical-align: -1px; margin-right: .4rem; overflow: visible;
}
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-size: 12px; font-weight: 600; color: var(--muted); }
th, td {
  padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
}
tr:last-child > td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
td.bar { width: 30%; min-width: 11rem; }
td.bar svg { width: 100%; height: 14px; display: block; margin-top: .3rem; }
td small { color: var(--muted); display: block; font-size: 12.5px; }
.mono {
  font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
thead th { position: sticky; top: 0; background: var(--card); z-index: 1; }
thead .key { display: inline-block; width: 9px; height: 9px; margin-right: .35rem; }
summary { cursor: pointer; font-weight: 600; }
details > .scroll, details > p, details > table { margin-top: .75rem; }
details .scroll { max-height: 26rem; }
@media print { .scroll { max-height: none; overflow: visible; } .card { break-inside: avoid; } }
"""
