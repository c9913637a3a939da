"use strict";
// Draws the charts that #charts describes, in the colours of the reader's scheme.
(() => {
  const described = document.getElementById("charts");
  if (!described) return;
  const {document: doc_json, roots} = JSON.parse(described.textContent);
  const drawable = Object.entries(roots).filter(([, name]) => document.getElementById(`chart-${name}`));
  if (!drawable.length) return;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");

  function paint(doc) {
    const style = getComputedStyle(document.documentElement);
    const [text, quiet, line] = ["--text", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
    const looks = {
      LinearAxis: {axis_label_text_color: quiet, major_label_text_color: text, axis_line_color: line, major_tick_line_color: line},
      Grid: {grid_line_color: line},
      Legend: {label_text_color: text},
    };
    looks.LogAxis = looks.LinearAxis;
    for (const model of doc.all_models) if (looks[model.type]) model.setv(looks[model.type]);
  }

  // A finger that drags over a chart scrolls the page, until the reader chooses a tool.
  function release(doc) {
    for (const model of doc.all_models) if (model.type === "BoxZoomTool") model.active = false;
  }

  const elements = Object.fromEntries(drawable.map(([id, name]) => [id, document.getElementById(`chart-${name}`)]));
  Bokeh.embed.embed_items({page: doc_json}, [{docid: "page", roots: elements, root_ids: Object.keys(elements)}]).then(() => {
    const doc = Bokeh.documents[0];
    paint(doc);
    if (coarse.matches) release(doc);
    dark.addEventListener("change", () => paint(doc));
    document.documentElement.dataset.charts = "drawn";
  });
})();
