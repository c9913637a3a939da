"use strict";
(() => {
  // Search fields that filter the rows of a table by the text of each row.
  for (const field of document.querySelectorAll("[data-filters]")) {
    const rows = [...document.querySelectorAll(`#${field.dataset.filters} tbody tr`)];
    const count = document.querySelector(`[data-count="${field.dataset.filters}"]`);
    const everything = count.textContent;
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.dataset.text.toLowerCase().includes(wanted);
        shown += !row.hidden;
      }
      count.textContent = wanted ? `${shown} of ${everything}` : everything;
    });
  }

  // Names and ids are only ever set as text.
  const data = JSON.parse(document.getElementById("page-data").textContent);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // The search over all videos.
  const field = document.getElementById("find-videos");
  if (field && data.videos) {
    const {classes, ids, labels, best, probabilities, each} = data.videos;
    const MOST = 48;
    const found = document.getElementById("videos-found");
    const groups = document.getElementById("video-groups");
    const said = document.getElementById("found-videos");
    const lower = classes.map((name) => name.toLowerCase());
    const cards = new Map();
    for (const card of groups.querySelectorAll(".card")) cards.set(Number(card.dataset.row), card);

    function cardOf(row) {
      if (cards.has(row)) return cards.get(row).cloneNode(true);
      const card = element("article", "card");
      card.append(element("p", "id", ids[row]));
      card.append(element("p", "quiet", `label: ${labels[row].map((label) => classes[label]).join(", ") || "none"}`));
      const list = element("ol", "guesses");
      for (let place = row * each; place < (row + 1) * each; place++) {
        const right = labels[row].includes(best[place]);
        const item = element("li", right ? "right" : "");
        const bar = element("span", "share");
        bar.style.width = `${probabilities[place] / 10}%`;
        item.append(bar, element("span", "name", classes[best[place]] + (right ? " ✓" : "")));
        item.append(element("span", "number", `${(probabilities[place] / 10).toFixed(1)} %`));
        list.append(item);
      }
      card.append(list);
      return card;
    }

    function search() {
      const wanted = field.value.trim().toLowerCase();
      groups.hidden = Boolean(wanted);
      found.hidden = !wanted;
      found.replaceChildren();
      said.textContent = "";
      if (!wanted) return;
      const matching = new Set(lower.flatMap((name, label) => (name.includes(wanted) ? [label] : [])));
      const rows = [];
      ids.forEach((id, row) => {
        if (id.toLowerCase().includes(wanted) || labels[row].some((label) => matching.has(label))) rows.push(row);
      });
      // Those whose frames are on the page come first.
      rows.sort((one, other) => cards.has(other) - cards.has(one) || one - other);
      said.textContent = `${rows.length} of ${ids.length} videos${rows.length > MOST ? `, of which ${MOST} are shown` : ""}`;
      found.append(...rows.slice(0, MOST).map(cardOf));
    }

    let waiting;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(search, 120);
    });
  }

  // The comparison of two runs.
  const [from, to] = ["pair-first", "pair-second"].map((id) => document.getElementById(id));
  if (from && data.pairs) {
    const place = document.getElementById("pair");
    const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;
    const percent = (share) => (100 * share).toFixed(1);
    const chance = (p) => (p < 0.001 ? "< 0.001" : p.toPrecision(2));

    // The pair of two runs, turned round where it was compared the other way.
    function pairOf(first, second) {
      const same = data.pairs.find((pair) => pair.first === first && pair.second === second);
      const turned = same ? null : data.pairs.find((pair) => pair.first === second && pair.second === first);
      if (!turned || turned.problem) return same || turned;
      const swap = (rows) => rows.map(([name, videos, one, other, q]) => [name, videos, other, one, q]);
      const [value, low, high] = turned.difference;
      return {
        ...turned,
        first,
        second,
        values: [...turned.values].reverse(),
        difference: [-value, -high, -low],
        signs: turned.signs && [turned.signs[1], turned.signs[0], turned.signs[2]],
        gain: swap(turned.lose),
        lose: swap(turned.gain),
      };
    }

    function tableOf(title, rows) {
      const side = element("div");
      side.append(element("h3", "", title));
      if (!rows.length) {
        side.append(element("p", "quiet", "No class."));
        return side;
      }
      const scroll = element("div", "scroll");
      const table = element("table");
      const head = element("tr");
      for (const name of ["class", "videos", "from (%)", "to (%)", "points", "q"]) head.append(element("th", name === "class" ? "text" : "", name));
      table.append(element("thead"), element("tbody"));
      table.tHead.append(head);
      for (const [name, videos, one, other, q] of rows) {
        const row = element("tr");
        row.append(element("td", "text", name));
        for (const text of [videos, percent(one), percent(other), points(other - one), q === null ? "" : chance(q)]) row.append(element("td", "", text));
        table.tBodies[0].append(row);
      }
      scroll.append(table);
      side.append(scroll);
      return side;
    }

    function compare() {
      place.replaceChildren();
      const pair = pairOf(from.value, to.value);
      if (!pair) return place.append(element("p", "", "Choose two different runs."));
      if (pair.problem) return place.append(element("p", "", pair.problem));
      const [value, low, high] = pair.difference;
      place.append(element("p", "big", `${points(value)} points of ${pair.metric}, 95 % interval ${points(low)} to ${points(high)}`));
      let text = `${percent(pair.values[0])} % to ${percent(pair.values[1])} % on ${pair.videos} videos`;
      if (pair.leftOut) text += ` (${pair.leftOut} that one of them lacks are left out)`;
      if (pair.signs) text += `. ${pair.signs[0]} videos become right and ${pair.signs[1]} become wrong: p ${pair.signs[2] < 0.001 ? "" : "= "}${chance(pair.signs[2])}`;
      place.append(element("p", "", `${text}.`));
      const sides = element("div", "sides");
      sides.append(tableOf("Classes that gain", pair.gain), tableOf("Classes that lose", pair.lose));
      place.append(sides);
    }

    from.addEventListener("change", compare);
    to.addEventListener("change", compare);
    compare();
  }
})();
