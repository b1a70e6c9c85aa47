"""The gallery's style sheet. Text reaches WCAG AA contrast in light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --text: #1a2027; --quiet: #545f6b; --rule: #dce0e5;
  --field: #ffffff; --edge: #858f9b; --accent: #1c5d99; --soft: #eef1f4;
  --right: #17683a; --right-back: #e2f2e8; --warn: #8a4b00; --warn-back: #fbeedb;
  --mat: #0b0d10; --on-mat: #aeb7c1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101316; --card: #191d22; --text: #e4e8ec; --quiet: #a0aab5; --rule: #2e353d;
    --field: #12161a; --edge: #6c7783; --accent: #7db6ec; --soft: #21262c;
    --right: #7bd3a0; --right-back: #17322a; --warn: #edb565; --warn-back: #3a2a14;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 76px; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
.top, main, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
.top { padding-top: 36px; padding-bottom: 20px; }
footer { padding-top: 12px; padding-bottom: 40px; color: var(--quiet); font-size: 14px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h1 small { font-size: inherit; font-weight: 400; color: var(--quiet); }
h1, h2, dd, li, p { overflow-wrap: anywhere; }
p { margin: 0; }
.eyebrow, .quiet { color: var(--quiet); font-size: 14px; }
.eyebrow { margin-bottom: 4px; }
.lead { font-size: 17px; max-width: 75ch; }
.lead + .quiet { margin-top: 4px; max-width: 90ch; }
[hidden] { display: none !important; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.bar {
  position: sticky; top: 0; z-index: 1; background: var(--page);
  border-bottom: 1px solid var(--rule);
}
.bar form {
  max-width: 1180px; margin: 0 auto; padding: 10px 20px; display: flex; flex-wrap: wrap;
  gap: 8px 12px; align-items: center;
}
.bar label { display: inline-flex; gap: 6px; align-items: center; font-size: 14px; }
.bar label.search { flex: 1 1 220px; }
.bar label span { color: var(--quiet); }
.bar input[type="search"], .bar select, .bar button {
  font: inherit; font-size: 15px; height: 36px; color: var(--text); background: var(--field);
  border: 1px solid var(--edge); border-radius: 6px; padding: 0 10px; min-width: 0;
}
.bar input[type="search"] { width: 100%; }
.bar select { padding: 0 4px; }
.bar button { cursor: pointer; }
.bar output { font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap; }

main { padding-top: 20px; display: grid; gap: 20px; }
.sample {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden;
  display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr);
}
@supports (overflow: clip) { .sample { overflow: clip; } }  /* hidden would undo sticky */
.mat {
  background: var(--mat); color: var(--on-mat); padding: 16px; display: flex; gap: 16px;
  flex-wrap: wrap; align-content: flex-start; align-items: flex-start; justify-content: center;
}
.mat figure { margin: 0; max-width: 100%; flex: 1 1 160px; text-align: center; }
/* An image stays in view beside a long text; .bar is sticky above it. */
.mat figure:only-child { position: sticky; top: 76px; }
.mat.bare { align-content: center; align-items: center; }
.mat img {
  display: inline-block; max-width: 100%; max-height: 460px; width: auto; height: auto;
  vertical-align: bottom;
}
.mat img.small { width: 240px; }
.mat figcaption { font-size: 12.5px; margin-top: 8px; line-height: 1.4; }
.mat .failed {
  border: 1px dashed #6b747e; border-radius: 6px; padding: 24px 16px; font-size: 14px;
  text-align: left;
}
.mat .none { font-size: 14px; }
.mat.bare { background: var(--soft); color: var(--quiet); }
.body { padding: 16px 20px 12px; min-width: 0; }
.head { display: flex; gap: 4px 12px; flex-wrap: wrap; align-items: baseline; margin-bottom: 8px; }
h2 { font-size: 14px; font-weight: 600; margin: 0; }
.head .place { color: var(--quiet); font-size: 13px; margin-left: auto; white-space: nowrap; }
.t { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; tab-size: 4; }
.question { font-size: 17px; line-height: 1.45; max-width: 75ch; }
ol.options { list-style: none; margin: 12px 0 0; padding: 0; display: grid; gap: 4px; }
.options li {
  display: grid; grid-template-columns: auto 1fr auto; gap: 8px; padding: 5px 10px;
  border: 1px solid var(--rule); border-radius: 6px; align-items: baseline;
}
.options li.right { background: var(--right-back); border-color: var(--right); }
.options .letter { min-width: 1.4em; color: var(--quiet); font-variant-numeric: tabular-nums; }
.options .right .letter, .mark { color: var(--right); font-weight: 600; }
.mark { font-size: 13px; white-space: nowrap; }
.answer { margin-top: 12px; padding: 8px 10px; border-radius: 6px; background: var(--right-back); }
.answer .mark { display: block; }
.chip {
  display: inline-block; font-size: 13px; border-radius: 999px; padding: 1px 10px;
  background: var(--soft); color: var(--text); white-space: nowrap;
}
.chip.warn { background: var(--warn-back); color: var(--warn); font-weight: 600; }
.trace { margin-top: 12px; }
.trace > .t { font-size: 15px; margin: 6px 0; max-width: 80ch; }
.said { font-size: 14px; margin-top: 4px; }
code.tag {
  font: 12.5px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  color: var(--quiet);
}
details { border-top: 1px solid var(--rule); margin-top: 10px; }
details + details { margin-top: 0; }
.said + details, .trace + details { margin-top: 10px; }
summary { cursor: pointer; padding: 7px 0; font-size: 14px; font-weight: 600; }
summary .quiet { font-weight: 400; font-size: 13px; }
details .t { font-size: 15px; padding-bottom: 10px; max-width: 80ch; }
h3 { font-size: 13px; margin: 8px 0 4px; color: var(--quiet); font-weight: 600; }
ul.units { margin: 0 0 12px; padding: 0 0 0 18px; font-size: 15px; }
.units li { margin-bottom: 10px; }
.units dl { margin-top: 4px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 14px; margin: 0; }
details > dl { padding-bottom: 12px; }
dt { color: var(--quiet); font-size: 13px; max-width: 14em; overflow-wrap: anywhere; }
dd { margin: 0; font-size: 14px; }
dd .t, dt .t { font-size: inherit; padding: 0; }
.hid {
  font: 0.8em/1 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; color: var(--warn);
  background: var(--warn-back); border-radius: 3px; padding: 0 3px; margin: 0 1px;
}
.cut { color: var(--warn); font-size: 13px; font-weight: 600; }
.empty { text-align: center; padding: 48px 0; color: var(--quiet); }

@media (max-width: 780px) {
  html { scroll-padding-top: 12px; }
  .top, main, footer { padding-left: 12px; padding-right: 12px; }
  .top { padding-top: 20px; }
  h1 { font-size: 23px; }
  .lead { font-size: 16px; }
  .bar { position: static; }
  .bar form { padding: 10px 12px; }
  .bar label.search { flex-basis: 100%; }
  .sample { grid-template-columns: minmax(0, 1fr); }
  .mat { padding: 12px; }
  .mat figure:only-child { position: static; }
  .mat img { max-height: 340px; }
  .body { padding: 12px 14px 8px; }
}
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
@media print {
  :root {
    --page: #fff; --card: #fff; --text: #000; --quiet: #444; --rule: #bbb; --soft: #eee;
    --right: #17683a; --right-back: #e2f2e8; --warn: #8a4b00; --warn-back: #fbeedb;
  }
  .bar { display: none; }
  body { font-size: 10.5pt; }
  .top, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  .mat, .options, .head, figure { break-inside: avoid; }
  .mat img { max-height: 90mm; }
  details::details-content { content-visibility: visible; display: block; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
