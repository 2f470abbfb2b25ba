"use strict";
// Draws where domains lie: one small map for each method, all in the colours of the annotation.
(() => {
  const data = JSON.parse(document.getElementById("maps-data").textContent);
  const GREY = "#9aa3ad";
  const canvases = data.maps.map((_, place) => document.getElementById(`map-${place}`));
  const legend = document.getElementById("map-legend");
  const state = { way: "plain", chosen: null };

  function bytes(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out.buffer;
  }

  const xy = new Float32Array(bytes(data.xy));
  for (const map of data.maps) {
    for (const way of ["plain", "refined"]) if (map[way]) map[way] = new Uint16Array(bytes(map[way]));
  }
  const codesOf = (map) => map[state.way] || map.plain;
  const hue = (code) => (code === data.missing ? GREY : data.palette[code % data.palette.length]);
  const nameOf = (code) => (code === data.missing ? "not annotated" : data.names[code]);

  function draw(place) {
    const map = data.maps[place];
    const canvas = canvases[place];
    const rim = 4; // pixels around, so that dots at the edge are whole
    const width = canvas.clientWidth;
    if (!width) return;
    const scale = Math.min((width - 2 * rim) / (data.width || 1), 420 / (data.height || 1));
    const height = Math.max(24, data.height * scale + 2 * rim);
    const dense = Math.min(3, devicePixelRatio || 1);
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const left = (width - data.width * scale) / 2;
    const dot = Math.min(9, Math.max(1, 0.92 * data.spacing * scale));
    const codes = codesOf(map);
    const byCode = new Map();
    codes.forEach((code, i) => {
      if (!byCode.has(code)) byCode.set(code, []);
      byCode.get(code).push(i);
    });
    const paint = (code, cells, colour, alpha) => {
      pen.fillStyle = colour;
      pen.globalAlpha = alpha;
      pen.beginPath();
      for (const i of cells) {
        const x = left + xy[2 * i] * scale;
        const y = rim + xy[2 * i + 1] * scale;
        if (dot < 3) pen.rect(x - dot / 2, y - dot / 2, dot, dot);
        else {
          pen.moveTo(x + dot / 2, y);
          pen.arc(x, y, dot / 2, 0, 2 * Math.PI);
        }
      }
      pen.fill();
    };
    const alone = state.chosen;
    for (const [code, cells] of byCode) {
      if (alone === null) paint(code, cells, hue(code), code === data.missing ? 0.35 : 1);
      else if (code !== alone) paint(code, cells, GREY, 0.22);
    }
    if (alone !== null && byCode.has(alone)) paint(alone, byCode.get(alone), hue(alone), 1);
    pen.globalAlpha = 1;
    pen.fillStyle = getComputedStyle(canvas).color;
    pen.font = "11px system-ui, sans-serif";
    for (const section of data.sections) pen.fillText(section.name, left + section.x * scale, rim + section.y * scale);
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
    canvas.closest("figure").querySelector(".told").textContent = map.said[state.way] || map.said.plain;
  }

  const redraw = () => canvases.forEach((_, place) => draw(place));

  function press(code) {
    state.chosen = state.chosen === code ? null : code;
    for (const button of legend.querySelectorAll("button")) {
      const own = Number(button.dataset.code);
      button.setAttribute("aria-pressed", String(state.chosen === null || state.chosen === own));
    }
    redraw();
  }

  function entry(code) {
    const item = document.createElement("li");
    const button = item.appendChild(document.createElement("button"));
    button.type = "button";
    button.dataset.code = code;
    button.setAttribute("aria-pressed", "true");
    const swatch = button.appendChild(document.createElement("span"));
    swatch.className = "swatch";
    swatch.style.background = hue(code);
    const name = button.appendChild(document.createElement("span"));
    name.className = "name";
    name.textContent = nameOf(code);
    button.addEventListener("click", () => press(code));
    return item;
  }

  const used = new Set(data.maps.flatMap((map) => [...new Set(map.plain)]));
  legend.replaceChildren(...[...used].sort((one, other) => one - other).map(entry));
  for (const radio of document.querySelectorAll("input[name=vote]")) {
    radio.addEventListener("change", () => {
      state.way = radio.value;
      redraw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = 0;
  new ResizeObserver(() => {
    // Only the width: drawing sets the height itself.
    if (canvases[0].clientWidth !== width) {
      width = canvases[0].clientWidth;
      redraw();
    }
  }).observe(document.getElementById("maps"));
  // A browser may restore the controls of an earlier visit; what is drawn follows them.
  state.way = document.querySelector("input[name=vote]:checked")?.value || "plain";
  redraw();
})();
