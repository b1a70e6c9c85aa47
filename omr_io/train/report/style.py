"""The report's style sheet. Text and marks reach WCAG AA contrast in light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f8f9; --card: #ffffff; --text: #1c2229; --quiet: #56606b; --rule: #dde1e6;
  --image: #1c5d99; --blind: #9a5800; --majority: #68717c; --shuffled: #7b3fa0; --raw: #a9c3dc;
  --right: #17683a; --right-back: #e4f3ea; --wrong: #a12622; --wrong-back: #fbe9e8;
  --stage: #0e1013;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #13171b; --card: #1b2026; --text: #e4e8ec; --quiet: #a2acb7; --rule: #323a43;
    --image: #79b4ec; --blind: #e3ac5b; --majority: #9ba5b0; --shuffled: #c79be8; --raw: #3b5a78;
    --right: #7bd3a0; --right-back: #18342a; --wrong: #f39a94; --wrong-back: #412324;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 40px; }
footer { padding-bottom: 48px; color: var(--quiet); font-size: 14px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 20px; line-height: 1.3; margin: 44px 0 4px; }
h3 { font-size: 15px; line-height: 1.4; margin: 0; font-weight: 600; }
p { margin: 0 0 12px; max-width: 70ch; }
.quiet { color: var(--quiet); font-size: 14px; }
dl.row + .quiet { margin-top: 16px; }
.after { margin: 12px 0 0; }
.eyebrow { color: var(--quiet); font-size: 14px; margin: 0 0 6px; }
.lead { font-size: 18px; margin-top: 24px; }
h1, h2, h3, p, td, th, dd, li, pre { overflow-wrap: break-word; }
.example, dl, pre { overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 16px; }
.numbers { font-variant-numeric: tabular-nums; white-space: nowrap; }

table { width: 100%; border-collapse: collapse; margin: 0; }
caption { text-align: left; font-weight: 600; padding: 0 0 8px; }
th, td { text-align: left; padding: 7px 16px 7px 0; font-weight: 400; vertical-align: middle; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--quiet); font-size: 13px; padding-top: 0; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--rule); }
tbody th { font-weight: 500; min-width: 11em; white-space: nowrap; }
td.wide, th.wide { width: 34%; min-width: 220px; }
td small { color: var(--quiet); font-size: 13px; }
.tables { display: grid; gap: 16px; margin-top: 16px; }
.scale { display: flex; justify-content: space-between; padding: 0 1%; }
.scale span { width: 0; display: flex; justify-content: center; }
.scale span:first-child { justify-content: flex-start; }
.scale span:last-child { justify-content: flex-end; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 8px; }
.key.image { background: var(--image); }
.key.blind { background: var(--blind); }
.key.majority { background: var(--majority); }
.key.shuffled { background: var(--shuffled); }

svg { display: block; width: 100%; }
svg .grid { stroke: var(--rule); stroke-width: 1; fill: none; vector-effect: non-scaling-stroke; }
.chart { height: auto; margin-top: 8px; }
.chart text { fill: var(--quiet); font-size: 11px; font-variant-numeric: tabular-nums; }
.chart .raw { fill: none; stroke: var(--raw); stroke-width: 1; stroke-linejoin: round; }
.chart .curve { fill: none; stroke: var(--image); stroke-width: 2; stroke-linejoin: round; }
.chart .end { fill: var(--image); }
.intervals.rows1 { height: 16px; }
.intervals.rows2 { height: 28px; }
.intervals .bar, .intervals .dot { fill: none; vector-effect: non-scaling-stroke; }
.intervals .bar { stroke-width: 2.5; opacity: 0.75; }
.intervals .dot { stroke-width: 9; stroke-linecap: round; }
.intervals .image { stroke: var(--image); }
.intervals .blind { stroke: var(--blind); }
.intervals .majority { stroke: var(--majority); }
.intervals .shuffled { stroke: var(--shuffled); }

.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; }
figure { margin: 0; display: flex; flex-direction: column; justify-content: space-between; }
figcaption { display: flex; justify-content: space-between; gap: 12px; align-items: baseline; }
figcaption .numbers { color: var(--quiet); font-size: 14px; }

dl.row { display: flex; flex-wrap: wrap; gap: 8px 48px; margin: 0; }
.row dt { color: var(--quiet); font-size: 13px; }
.row dd { margin: 0; font-variant-numeric: tabular-nums; }
dl.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px;
  margin: 16px 0 0;
}
.tiles dt { color: var(--quiet); font-size: 13px; }
.tiles dd { margin: 0; font-size: 20px; font-variant-numeric: tabular-nums; }
.tiles .card { padding: 12px 16px; }

.examples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 16px;
}
.example { padding: 0; overflow: hidden; display: flex; flex-direction: column; }
.example img, .example .no-image {
  display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--stage);
}
.example .no-image { color: #c3cad2; display: grid; place-items: center; font-size: 14px; }
.example .inner { padding: 12px 16px 16px; font-size: 14px; line-height: 1.45; }
.example .question { white-space: pre-wrap; margin: 8px 0; }
.badge {
  display: inline-block; border-radius: 4px; padding: 1px 8px; font-weight: 600;
  font-size: 13px;
}
.badge.right { color: var(--right); background: var(--right-back); }
.badge.wrong { color: var(--wrong); background: var(--wrong-back); }
.head {
  display: flex; justify-content: space-between; gap: 8px; align-items: baseline;
  flex-wrap: wrap;
}
pre {
  margin: 0; white-space: pre-wrap; font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas,
  "Liberation Mono", monospace;
}
.completion {
  max-height: 148px; overflow: auto; padding: 8px 10px; border-radius: 4px;
  background: var(--page); border: 1px solid var(--rule);
}
:focus-visible { outline: 2px solid var(--image); outline-offset: 2px; }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
details .card { margin-top: 8px; overflow-x: auto; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dl.facts.short { gap: 2px 12px; margin-bottom: 10px; }
.facts dt { color: var(--quiet); }
.facts dd { margin: 0; }

@media (max-width: 700px) {
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 24px; }
  h1 { font-size: 25px; }
  .lead { font-size: 17px; }
  thead th:not(.wide) { display: none; }
  thead tr, tbody tr { display: flex; flex-wrap: wrap; column-gap: 16px; }
  th, td { padding: 0; }
  thead th.wide { width: 100%; padding-top: 0; }
  tbody tr { padding: 8px 0; }
  tbody th { width: 100%; min-width: 0; white-space: normal; }
  tbody th:has(+ td.count) { width: auto; flex: 1; }
  td.score { width: 100%; }
  td.wide { width: 100%; padding-top: 4px; order: 9; }
  td[data-label]::before { content: attr(data-label) " "; color: var(--quiet); font-size: 13px; }
  td.score::before { display: inline-block; min-width: 8.3em; }
  td:empty { display: none; }
  dl.facts:not(.short) { grid-template-columns: 1fr; gap: 0; }
  .facts:not(.short) dd { margin-bottom: 8px; }
  dl.row { display: flex; flex-wrap: wrap; gap: 8px 48px; margin: 0; }
.row dt { color: var(--quiet); font-size: 13px; }
.row dd { margin: 0; font-variant-numeric: tabular-nums; }
dl.tiles { grid-template-columns: 1fr 1fr; }
}
@media print {
  :root { --page: #fff; --card: #fff; --text: #000; --quiet: #444; --rule: #bbb; }
  body { font-size: 11pt; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  .card, figure, tr { break-inside: avoid; }
  h2, h2 + .quiet { break-after: avoid; }
  .completion { max-height: none; }
  details::details-content { content-visibility: visible; display: block; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
