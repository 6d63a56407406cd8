"""The report's style sheet: light, and dark where the reader's system is."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #202124; --soft: #5f6368; --paper: #ffffff; --panel: #f5f6f8; --line: #dfe1e5; --accent: #1f5fa8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaed; --soft: #9aa0a6; --paper: #17181b; --panel: #222428; --line: #3a3d42; --accent: #8ab4f8;
  }
  .chart img { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
.lead { font-size: 1.1rem; max-width: 46rem; }
section > p { color: var(--soft); max-width: 46rem; margin: .25rem 0 .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; color: var(--accent); }
.tile span { display: block; }
.tile small { color: var(--soft); }
.scroll { overflow-x: auto; }
.grid img, .chart img { display: block; width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--line); }
.grid img { min-width: 760px; }
.chart img { max-width: 860px; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
td, th { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
pre { overflow-x: auto; }
summary { cursor: pointer; color: var(--accent); }
.graph { overflow: auto; max-height: 80vh; margin-top: .75rem; border: 1px solid var(--line); border-radius: 8px; }
.graph { padding: 1rem; background: #ffffff; }  /* the drawing's colours are for paper */
li { margin: .35rem 0; }
"""
