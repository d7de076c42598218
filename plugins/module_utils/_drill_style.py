# SPDX-License-Identifier: GPL-3.0-or-later
"""The style sheet of a report's page: light, dark, and on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --page: #f4f6f8; --card: #ffffff; --ink: #17212b; --soft: #55636f; --line: #dbe1e7; --grid: #e6ebef;
  --protected: #12806a; --failing: #d6401f; --running: #f2a51a; --off: #9aa6b1; --on-running: #3d2900;
  --silence: #17212b; --answers: #a9d8cc; --good: #0d6b58; --good-soft: #dff3ee; --bad: #b42f12;
  --bad-soft: #fde8e2; --warn: #8a5a00; --warn-soft: #fdf1d8; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f151b; --card: #18212a; --ink: #e8edf2; --soft: #a3b0bc; --line: #2d3944; --grid: #26313b;
  --protected: #1f9d83; --failing: #f0623f; --running: #f2b035; --off: #6b7883; --on-running: #2b1c00;
  --silence: #f5f8fa; --answers: #23594e; --good: #5fd6bb; --good-soft: #12352f; --bad: #ff9479;
  --bad-soft: #43190f; --warn: #f2c063; --warn-soft: #3a2b0d; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 32px 20px 48px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 1000px; margin: 0 auto; }
h1 { font-size: 27px; line-height: 1.2; margin: 4px 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 14px; }
h3 { font-size: 15px; margin: 22px 0 8px; }
.brand { color: var(--soft); font-size: 13px; letter-spacing: 0.04em; text-transform: uppercase; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  margin: 0 0 18px; }
.lead { margin: 0 0 6px; max-width: 74ch; }
.soft, dt { color: var(--soft); }
small { font-size: 13px; color: var(--soft); }
.verdict { display: inline-block; font-weight: 650; border-radius: 999px; padding: 2px 13px; margin-right: 8px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.verdict.good { background: var(--good-soft); } .verdict.bad { background: var(--bad-soft); }
.verdict.warn { background: var(--warn-soft); }
.good, .bad, .warn { font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px 24px; margin: 18px 0 0; }
dt { font-size: 13px; } dd { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 0 0 18px; }
.tiles .card { margin: 0; padding: 16px 20px; }
.tiles b { display: block; font-size: 26px; line-height: 1.25; letter-spacing: -0.01em; }
table { width: 100%; min-width: 660px; border-collapse: collapse; font-variant-numeric: tabular-nums;
  overflow-wrap: break-word; }
.any { overflow-wrap: anywhere; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--soft); padding: 4px 12px 6px 0;
  border-bottom: 1px solid var(--line); white-space: nowrap; overflow-wrap: normal; }
td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:last-child, th:last-child { padding-right: 0; }
.num { text-align: right; white-space: nowrap; }
.nowrap { white-space: nowrap; overflow-wrap: normal; }
code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.wide { overflow-x: auto; }
.picture { overflow-x: auto; }
.picture svg { display: block; width: 100%; min-width: 640px; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 11px; } svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .group { fill: var(--soft); font-size: 11px; } svg .lane { font-weight: 600; }
.seg.protected { fill: var(--protected); } .seg.failing_over { fill: var(--failing); }
.seg.running { fill: var(--running); } .seg.off { fill: var(--off); }
svg .on { fill: #ffffff; font-size: 11px; } svg .on.running { fill: var(--on-running); }
.answers { fill: var(--answers); } .silence { fill: var(--silence); } .order { fill: var(--ink); }
svg .in-silence { fill: var(--card); font-size: 11px; text-anchor: middle; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 20px; padding: 0; margin: 12px 0 0;
  font-size: 13px; color: var(--soft); }
.legend .key { width: 22px; height: 12px; margin-right: 7px; vertical-align: -1px; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 560px) { body { padding: 18px 10px 30px; } .card { padding: 16px 14px; } }
@page { size: A4; margin: 14mm 13mm; }
@media print {
  :root { --page: #ffffff; --card: #ffffff; --ink: #111111; --soft: #444444; --line: #bbbbbb; --grid: #dddddd;
    --protected: #12806a; --failing: #d6401f; --running: #f2a51a; --off: #9aa6b1; --on-running: #3d2900;
    --silence: #111111; --answers: #a9d8cc; --good: #0d6b58; --good-soft: #dff3ee; --bad: #b42f12;
    --bad-soft: #fde8e2; --warn: #8a5a00; --warn-soft: #fdf1d8; color-scheme: light; }
  body { padding: 0; font-size: 9.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; }
  .card { border-radius: 0; border-width: 1px 0 0; padding: 10px 0 2px; margin: 0 0 10px; }
  .tiles { grid-template-columns: repeat(3, 1fr); }
  .picture svg, table { min-width: 0; }
  th, .num small { white-space: normal; overflow-wrap: normal; } small, dt, th { font-size: 8.5pt; }
  td, th { padding-right: 8px; } td { padding-top: 4px; padding-bottom: 4px; }
  .picture, .wide { overflow: visible; }
  tr, .picture, .tiles .card { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
