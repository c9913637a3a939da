"use strict";
const form = document.getElementById("ask");
const answer = document.getElementById("answer");
const button = form.querySelector("button");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text, kind) {
  answer.replaceChildren(element("p", {className: kind, textContent: text}));
}

function show(found, seconds) {
  const {frames, width, height, fps} = found.video;
  const rows = found.predictions.map(({label, probability}) => {
    const bar = element("span");
    bar.style.width = `${100 * probability}%`;
    const share = element("div", {className: "bar"}, bar);
    share.setAttribute("aria-hidden", "true");
    return element("tr", {}, element("td", {}, label, share), element("td", {textContent: probability.toFixed(3)}));
  });
  const heads = ["label", "probability"].map((text) => element("th", {scope: "col", textContent: text}));
  const rate = fps ? ` at ${fps.toFixed(1)} frames a second` : "";
  answer.replaceChildren(element("table", {},
    element("caption", {textContent: `${frames} frames of ${width} x ${height} pixels${rate}, in ${seconds.toFixed(2)} s`}),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows)));
}

function request() {
  const file = form.video.files[0];
  const url = document.getElementById("url")?.value.trim();
  if (!file && url) {
    const body = JSON.stringify({url, topk: Number(form.topk.value)});
    return {method: "POST", body, headers: {"Content-Type": "application/json"}};
  }
  if (!file) throw new Error("choose a video file first");
  if (file.size > form.dataset.megabytes * 2 ** 20) throw new Error("the file is too large for this server");
  return {method: "POST", body: new FormData(form)};
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const started = performance.now();
  button.disabled = true;
  answer.setAttribute("aria-busy", "true");
  try {
    const asked = request();
    say("Labelling ...", "quiet");
    const response = await fetch(form.action, asked);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    show(found, (performance.now() - started) / 1000);
  } catch (error) {
    say(`It was not labelled: ${error.message}`, "error");
  } finally {
    button.disabled = false;
    answer.setAttribute("aria-busy", "false");
  }
});
