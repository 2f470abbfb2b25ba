"use strict";
// Draws the cells of one method, or of two side by side, coloured by batch or label, with the lines along velocities.
(() => {
  const cells = JSON.parse(document.getElementById("cells").textContent);
  const paneElements = [...document.querySelectorAll(".pane")];
  const legend = document.getElementById("legend");
  const namesBox = document.getElementById("names");
  const besideBox = document.getElementById("beside");
  const streamsBox = document.getElementById("streams");
  const GREY = "#9aa3ad";
  const size = cells.n > 30000 ? 2.5 : cells.n > 10000 ? 3.5 : cells.n > 2500 ? 4.5 : 6;
  const state = { colour: 0, chosen: new Set() };

  function bytes(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out.buffer;
  }

  // Arrays are unpacked when a method or a colouring is first looked at.
  function coordinates(method) {
    if (method.of !== undefined && !method.x) {
      const { x, y } = coordinates(cells.methods[method.of]);
      Object.assign(method, { x, y });
    } else if (!method.x) {
      const xy = new Float32Array(bytes(method.xy));
      method.x = Float32Array.from({ length: cells.n }, (_, i) => xy[2 * i]);
      method.y = Float32Array.from({ length: cells.n }, (_, i) => xy[2 * i + 1]);
      delete method.xy;
    }
    return method;
  }

  function colouring() {
    const colour = cells.colours[state.colour];
    if (colour && !colour.levels) {
      colour.levels = new Uint16Array(bytes(colour.codes));
      colour.counts = new Map();
      for (const code of colour.levels) colour.counts.set(code, (colour.counts.get(code) || 0) + 1);
      delete colour.codes;
    }
    return colour;
  }

  const nameOf = (colour, code) => (code === cells.missing ? "not given" : colour.names[code]);
  const hue = (code) => (code === cells.missing ? GREY : cells.palette[code % cells.palette.length]);
  const webgl = (() => {
    const context = document.createElement("canvas").getContext("webgl");
    if (context) context.getExtension("WEBGL_lose_context")?.loseContext();
    return Boolean(context);
  })();

  function trace(method, index, marker) {
    const take = (values) => (index ? Float32Array.from(index, (i) => values[i]) : values);
    return { type: webgl ? "scattergl" : "scatter", mode: "markers", x: take(method.x), y: take(method.y),
      hoverinfo: "none", showlegend: false, marker: { size, ...marker } };
  }

  // One trace in shuffled order shows all levels; with some isolated, the rest lies below in grey.
  function traces(method) {
    const colour = colouring();
    const every = webgl ? null : Array.from({ length: Math.min(cells.n, 5000) }, (_, i) => i);
    if (!colour) return [{ ...trace(method, every, { color: hue(0), opacity: 0.7 }), index: every }];
    const paint = (i) => hue(colour.levels[i]);
    const all = every || Array.from({ length: cells.n }, (_, i) => i);
    if (!state.chosen.size) return [{ ...trace(method, every, { color: all.map(paint), opacity: 0.8 }), index: every }];
    const front = all.filter((i) => state.chosen.has(colour.levels[i]));
    const back = all.filter((i) => !state.chosen.has(colour.levels[i]));
    return [
      { ...trace(method, back, { color: GREY, opacity: 0.18 }), index: back },
      { ...trace(method, front, { color: front.map(paint), opacity: 0.9 }), index: front },
    ];
  }

  function streams(method) {
    if (!method.streams || !streamsBox?.checked) return [];
    const lines = new Float32Array(bytes(method.streams));
    const of = (place) => Array.from({ length: lines.length / 2 }, (_, i) => lines[2 * i + place]);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return [{ type: webgl ? "scattergl" : "scatter", mode: "lines", x: of(0), y: of(1), connectgaps: false, hoverinfo: "skip",
      showlegend: false, line: { width: 1.4, color: dark ? "#ffffff" : "#000000" } }];
  }

  const median = (values) => values.sort((one, other) => one - other)[values.length >> 1];

  function annotations(method) {
    const colour = colouring();
    if (!colour || !namesBox.checked) return [];
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const found = new Map();
    colour.levels.forEach((code, i) => {
      if (code === cells.missing || (state.chosen.size && !state.chosen.has(code)) || Number.isNaN(method.x[i])) return;
      if (!found.has(code)) found.set(code, [[], []]);
      found.get(code)[0].push(method.x[i]);
      found.get(code)[1].push(method.y[i]);
    });
    return [...found].map(([code, [x, y]]) => ({
      x: median(x), y: median(y), showarrow: false, borderpad: 1,
      // Plotly reads some HTML in texts; names are shown as they are.
      text: shorten(nameOf(colour, code)).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"),
      font: { size: 12, color: dark ? "#ffffff" : "#000000" },
      bgcolor: dark ? "rgba(20,23,27,0.72)" : "rgba(255,255,255,0.78)",
    }));
  }
  const shorten = (name) => (name.length > 32 ? `${name.slice(0, 31)}…` : name);

  function draw(pane) {
    const element = paneElements[pane];
    const plot = document.getElementById(`plot-${pane}`);
    if (element.hidden) {
      // Browsers allow only some WebGL contexts at a time, so a hidden plot gives its own back.
      Plotly.purge(plot);
      return;
    }
    const picked = Number(document.getElementById(`method-${pane}`).value);
    const method = coordinates(cells.methods[picked]);
    const drawn = [...traces(method), ...streams(method)];
    const axis = { visible: false, zeroline: false, showgrid: false };
    const layout = {
      margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: axis, yaxis: { ...axis, scaleanchor: "x" }, showlegend: false, hovermode: "closest", dragmode: "zoom",
      uirevision: method.name, annotations: annotations(method),
    };
    const config = { responsive: true, displaylogo: false, plotGlPixelRatio: Math.min(2, devicePixelRatio),
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { filename: `tenfold-${method.name}`, scale: 2 } };
    const colour = colouring();
    plot.setAttribute("aria-label", `UMAP of ${method.title}, ${cells.n} cells` +
      (colour ? `, coloured by ${colour.kind} (${colour.names.length} levels)` : "") +
      (method.streams ? ", with streamlines of its velocities" : ""));
    const fresh = !plot.data;
    Plotly.react(plot, drawn.map(({ index, ...rest }) => rest), layout, config).then(() => {
      plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
    });
    plot.drawn = drawn.map(({ index }) => index);
    if (fresh) listen(plot, pane);
  }

  function listen(plot, pane) {
    plot.on("plotly_hover", ({ points: [point], event }) => {
      const index = plot.drawn[point.curveNumber];
      const cell = index ? index[point.pointNumber] : point.pointNumber;
      const lines = cells.colours.map((colour, place) => {
        const before = state.colour;
        state.colour = place;
        const text = `${colour.kind}: ${nameOf(colouring(), colour.levels[cell])}`;
        state.colour = before;
        return text;
      });
      if (event && lines.length) window.tenfoldTip.show(lines.reverse().join("\n"), event.clientX, event.clientY);
    });
    plot.on("plotly_unhover", window.tenfoldTip.hide);
    plot.addEventListener("mouseleave", window.tenfoldTip.hide);
  }

  function redraw() {
    paneElements.forEach((_, pane) => draw(pane));
  }

  function press(code, add) {
    const alone = state.chosen.size === 1 && state.chosen.has(code);
    if (add && state.chosen.has(code)) state.chosen.delete(code);
    else if (add) state.chosen.add(code);
    else state.chosen = new Set(alone ? [] : [code]);
    for (const button of legend.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(!state.chosen.size || state.chosen.has(Number(button.dataset.code))));
    }
    redraw();
  }

  function entry(colour, code) {
    const item = document.createElement("li");
    const button = item.appendChild(document.createElement("button"));
    button.type = "button";
    button.dataset.code = code;
    button.setAttribute("aria-pressed", "true");
    const [swatch, name, count] = ["swatch", "name", "count"].map((part) => {
      const span = button.appendChild(document.createElement("span"));
      span.className = part;
      return span;
    });
    swatch.style.background = hue(code);
    name.textContent = nameOf(colour, code);
    count.textContent = (colour.counts.get(code) || 0).toLocaleString("en");
    button.addEventListener("click", (event) => press(code, event.shiftKey || event.ctrlKey || event.metaKey));
    return item;
  }

  function recolour(place) {
    state.colour = place;
    state.chosen = new Set();
    const colour = colouring();
    if (colour) {
      const codes = colour.names.map((_, code) => code).filter((code) => colour.counts.has(code));
      if (colour.counts.has(cells.missing)) codes.push(cells.missing);
      legend.replaceChildren(...codes.map((code) => entry(colour, code)));
    }
    redraw();
  }

  for (const radio of document.querySelectorAll("input[name=colour]")) {
    radio.addEventListener("change", () => recolour(Number(radio.value)));
  }
  paneElements.forEach((_, pane) => {
    document.getElementById(`method-${pane}`).addEventListener("change", () => draw(pane));
  });
  if (namesBox) namesBox.addEventListener("change", redraw);
  if (streamsBox) streamsBox.addEventListener("change", redraw);
  if (besideBox) {
    besideBox.addEventListener("change", () => {
      paneElements[1].hidden = !besideBox.checked;
      redraw();
      Plotly.Plots.resize(document.getElementById("plot-0"));
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // A browser may restore the controls of an earlier visit; what is drawn follows them.
  const checked = document.querySelector("input[name=colour]:checked");
  if (besideBox) paneElements[1].hidden = !besideBox.checked;
  recolour(checked ? Number(checked.value) : 0);
})();
