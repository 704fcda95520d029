// The page of Playground: dials, a chart of all points, a table of the same numbers, and the samples behind them.
// Text goes through text nodes and attributes that hold nothing but text; no address is ever asked for.

const DIALS = [
  ["threshold", 1, "share of the thought that is blurred"],
  ["beta", 2, "weight of the think format"],
  ["anchor", 4, "hold of the model on what is blurred"],
];
const DATA = ["tiny/teacher", "tiny/messy"];
const [X, Y] = ["unique thoughts", ["accuracy", "compliance"]];
const COLORS = { light: ["#0072b2", "#d55e00", "#00795a"], dark: ["#56b4e9", "#e69f00", "#2fc79b"] }; // Okabe, Ito
const HEIGHT = 340;
const PLACE = { left: 52, right: 18, top: 34, bottom: 46 };

const STYLE = `
  :host { display: block; color: inherit; }
  .all { font: 14px/1.45 system-ui, sans-serif; max-width: 980px; padding: 4px; }
  .dials, .cards { display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: flex-start; }
  .dials label { flex: 1 1 190px; max-width: 290px; }
  .dials input, .dials select { display: block; width: 100%; box-sizing: border-box; margin: 3px 0; }
  input, progress { accent-color: var(--first); }
  .dials select { font: inherit; padding: 4px; }
  .value { float: right; font-variant-numeric: tabular-nums; }
  small { opacity: 0.8; }
  .go { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin: 12px 0 4px; }
  button { font: inherit; padding: 4px 18px; }
  progress { flex: 1 1 120px; max-width: 260px; }
  [role=status] { flex: 2 1 200px; overflow-wrap: anywhere; }
  svg { display: block; width: 100%; height: auto; }
  svg text { fill: currentColor; font-size: 12px; }
  .rule { stroke: currentColor; opacity: 0.16; }
  .axis { stroke: currentColor; opacity: 0.6; }
  .bar { stroke-width: 1.6; opacity: 0.6; }
  .mark { stroke-width: 2.2; }
  .tie { stroke: currentColor; stroke-dasharray: 2 3; opacity: 0.45; }
  .ring { fill: rgba(128, 128, 128, 0.28); stroke: currentColor; visibility: hidden; }
  .point { cursor: pointer; outline: none; }
  .point.on .ring, .point:focus-visible .ring { visibility: visible; }
  .point:focus-visible .ring { stroke-width: 2.5; }
  .point text { font-weight: 600; }
  .wide { overflow-x: auto; margin: 6px 0 14px; }
  table { font: inherit; font-size: 13px; font-variant-numeric: tabular-nums; border-collapse: collapse; width: 100%; }
  th, td { text-align: left; padding: 3px 10px 3px 4px; white-space: nowrap; }
  th, td { border-bottom: 1px solid rgba(128, 128, 128, 0.35); }
  tr.on td { background: rgba(128, 128, 128, 0.16); }
  .card { flex: 1 1 300px; min-width: 0; padding: 8px 12px; border: 1px solid rgba(128, 128, 128, 0.4); }
  h3 { font-size: 15px; margin: 0 0 4px; }
  h4 { font-size: 13px; margin: 12px 0 4px; }
  .sample { margin: 5px 0; padding: 3px 8px; border-left: 3px solid; font-size: 13px; }
  .sample bdi { white-space: pre-wrap; overflow-wrap: anywhere; font: 12.5px ui-monospace, monospace; }
  .sample .thought { background: rgba(128, 128, 128, 0.16); }
  .right { border-color: var(--third); } .wrong { border-color: var(--second); border-left-style: dashed; }
  .right b { color: var(--third); } .wrong b { color: var(--second); }
`;

const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const interval = ({ value, low, high }) => `${value.toFixed(2)} [${low.toFixed(2)}, ${high.toFixed(2)}]`;
const dials = (point) => DIALS.map(([name]) => `${name} ${point[name]}`).join(", ");
const named = (point) => (point.data === null ? "before fine-tuning" : `${point.data}, ${dials(point)}`);

/** "light" or "dark", whichever page the inherited text colour is made for. */
function schemeOf(node) {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  pen.fillStyle = getComputedStyle(node).color || "black";
  pen.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 128 ? "dark" : "light";
}

function axes(width, x, y) {
  const parts = [];
  for (const at of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    parts.push(
      s("line", { class: "rule", x1: x(at), x2: x(at), y1: y(0), y2: y(1) }),
      s("line", { class: "rule", x1: x(0), x2: x(1), y1: y(at), y2: y(at) }),
      s("text", { x: x(at), y: y(0) + 17, "text-anchor": "middle" }, at.toFixed(1)),
      s("text", { x: x(0) - 8, y: y(at) + 4, "text-anchor": "end" }, at.toFixed(1)),
    );
  }
  parts.push(
    s("path", { class: "axis", d: `M${x(0)} ${y(1)}V${y(0)}H${x(1)}`, fill: "none" }),
    s("text", { x: x(0.5), y: HEIGHT - 8, "text-anchor": "middle" }, "unique thoughts (share of samples)"),
    s("text", { transform: `translate(14 ${y(0.5)}) rotate(-90)`, "text-anchor": "middle" }, "share of samples"),
  );
  Y.forEach((name, k) => parts.push(mark(k, 66 + 92 * k, 14), s("text", { x: 77 + 92 * k, y: 18 }, name)));
  if (width > 460) parts.push(s("text", { x: x(1), y: 18, "text-anchor": "end" }, "bars: 95 % intervals"));
  return parts;
}

/** Accuracy is a filled circle, compliance an open square: neither needs its colour. */
function mark(k, x, y) {
  const stroke = ["var(--first)", "var(--second)"][k];
  return k === 0
    ? s("circle", { class: "mark", cx: x, cy: y, r: 5, fill: stroke, stroke })
    : s("rect", { class: "mark", x: x - 5, y: y - 5, width: 10, height: 10, fill: "none", stroke });
}

function drawnPoint(point, i, x, y) {
  const across = point.metrics[X];
  const at = x(across.value);
  const told = [X, ...Y].map((name) => `${name} ${interval(point.metrics[name])}`).join(", ");
  const ys = Y.map((name) => y(point.metrics[name].value));
  const [upper, lower] = [Math.min(...ys), Math.max(...ys)];
  const node = s(
    "g",
    { class: "point", tabindex: 0, role: "button", "aria-label": `Point ${i}: ${named(point)}. ${told}` },
    s("rect", { class: "ring", x: at - 11, y: upper - 11, width: 22, height: lower - upper + 22, rx: 11 }),
    s("line", { class: "tie", x1: at, x2: at, y1: ys[0], y2: ys[1] }),
  );
  Y.forEach((name, k) => {
    const { low, high } = point.metrics[name];
    const stroke = ["var(--first)", "var(--second)"][k];
    node.append(
      s("line", { class: "bar", stroke, x1: x(across.low), x2: x(across.high), y1: ys[k], y2: ys[k] }),
      s("line", { class: "bar", stroke, x1: at, x2: at, y1: y(low), y2: y(high) }),
      mark(k, at, ys[k]),
    );
  });
  const side = i % 2 ? { x: at + 13, "text-anchor": "start" } : { x: at - 13, "text-anchor": "end" };
  node.append(s("text", { ...side, y: lower + 15 }, String(i)));
  return node;
}

function sampleNode({ text, correct, problem }) {
  const end = text.indexOf("</think>");
  const cut = end >= 0 ? end + 8 : text.startsWith("<think>") ? text.length : 0;
  const word = correct ? "right" : "wrong";
  const parts = [h("b", {}, word), problem === null ? "" : `, format: ${problem}`];
  if (cut) parts.push(h("small", {}, " thought "), h("bdi", { class: "thought" }, text.slice(0, cut)));
  if (cut < text.length) parts.push(h("small", {}, " answer "), h("bdi", {}, text.slice(cut).replace(/^\n\n/, "")));
  return h("div", { class: `sample ${word}` }, ...parts);
}

function card(point, i) {
  const node = h("section", { class: "card" }, h("h3", {}, `Point ${i}: ${named(point)}`));
  const ways = Object.entries(point.ways).map(([way, count]) => `${way} ${count}`);
  const lines = Object.entries(point.metrics).map(([name, m]) => `${name} ${interval(m)}`);
  lines.push(`samples by way: ${ways.join(", ")}`, `${point.seconds.toFixed(1)} s`);
  node.append(...lines.map((line) => h("div", {}, line)));
  let question = null;
  for (const sample of point.samples) {
    if (sample.question !== question) node.append(h("h4", {}, h("bdi", {}, (question = sample.question))));
    node.append(sampleNode(sample));
  }
  return node;
}

function render({ model, el }) {
  const host = h("div", { "data-lm-suppress-shortcuts": "true" });
  const root = host.attachShadow({ mode: "open" });
  const inputs = {};
  const controls = h("div", { class: "dials" });
  for (const [name, max, hint] of DIALS) {
    const input = h("input", { type: "range", min: 0, max, step: 0.05 });
    const shown = h("span", { class: "value" });
    controls.append(h("label", {}, name, shown, input, h("small", {}, hint)));
    inputs[name] = { input, shown };
  }
  const select = h("select", {}, ...DATA.map((value) => h("option", { value }, value)));
  controls.append(h("label", {}, "data", select, h("small", {}, "teacher: one way of thinking; messy: tags are missing")));
  inputs.data = { input: select };

  const run = h("button", { type: "button" }, "Run");
  const cancel = h("button", { type: "button" }, "Cancel");
  const bar = h("progress", { max: 1, "aria-label": "progress of the run" });
  const status = h("span", { role: "status", "aria-live": "polite" });
  const chart = s("svg", { role: "group", "aria-label": `${X} against ${Y.join(" and ")}` });
  const table = h("div", { class: "wide" });
  const cards = h("div", { class: "cards" });
  const go = h("div", { class: "go" }, run, cancel, bar, status);
  root.append(h("style", {}, STYLE), h("div", { class: "all" }, controls, go, chart, table, cards));

  let selected = [];
  let looked = null; // the point under the pointer or the focus
  let [scheme, width, marks, rows] = ["", 0, [], []];

  const showCards = () => {
    const history = model.get("history");
    const both = looked === null || selected.includes(looked) ? selected : [...selected.slice(0, 1), looked];
    marks.forEach((node, i) => node.classList.toggle("on", both.includes(i)));
    marks.forEach((node, i) => node.setAttribute("aria-pressed", selected.includes(i)));
    rows.forEach(({ row, box }, i) => {
      row.classList.toggle("on", both.includes(i));
      box.checked = selected.includes(i);
    });
    cards.replaceChildren(...both.map((i) => card(history[i], i)));
  };
  const look = (i) => showCards((looked = i));
  const choose = (i) => {
    selected = selected.includes(i) ? selected.filter((other) => other !== i) : [...selected.slice(-1), i];
    look(null);
  };
  const drawChart = () => {
    const x = (value) => PLACE.left + value * (width - PLACE.left - PLACE.right);
    const y = (value) => HEIGHT - PLACE.bottom - value * (HEIGHT - PLACE.top - PLACE.bottom);
    marks = model.get("history").map((point, i) => {
      const node = drawnPoint(point, i, x, y);
      for (const [event, to] of [["pointerenter", i], ["focus", i], ["pointerleave", null], ["blur", null]])
        node.addEventListener(event, () => look(to));
      node.addEventListener("click", () => choose(i));
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose(i);
      });
      return node;
    });
    chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    chart.replaceChildren(...axes(width, x, y), ...marks);
  };
  const drawTable = () => {
    const head = ["show", "point", "data", ...DIALS.map(([name]) => name), X, ...Y, "seconds"];
    rows = model.get("history").map((point, i) => {
      const box = h("input", { type: "checkbox", "aria-label": `show point ${i}` });
      box.addEventListener("change", () => choose(i));
      const texts = ["data", ...DIALS.map(([name]) => name)].map((name) => String(point[name] ?? "\u2013"));
      texts.push(...[X, ...Y].map((name) => interval(point.metrics[name])), point.seconds.toFixed(1));
      return { box, row: h("tr", {}, h("td", {}, box), ...[String(i), ...texts].map((text) => h("td", {}, text))) };
    });
    const cells = head.map((name) => h("th", { scope: "col" }, name));
    const whole = h("table", {}, h("tr", {}, ...cells), ...rows.map(({ row }) => row));
    table.replaceChildren(rows.length ? whole : "No points yet: set the dials, and press Run.");
  };
  const drawHistory = () => {
    const n = model.get("history").length;
    selected = n ? [...new Set([Math.min(selected[0] ?? 0, n - 1), n - 1])] : [];
    looked = null;
    drawChart();
    drawTable();
    showCards();
  };
  const showRun = () => {
    const running = model.get("running");
    const focused = root.activeElement;
    run.disabled = running;
    cancel.disabled = !running;
    if (focused?.disabled) (running ? cancel : run).focus();
    bar.value = model.get("progress");
    bar.hidden = !running;
    status.textContent = model.get("status");
  };
  const showDials = () => {
    for (const [name, { input, shown }] of Object.entries(inputs)) {
      if (shown) {
        input.max = Math.max(input.max, model.get(name));
        shown.textContent = model.get(name).toFixed(2);
      }
      input.value = model.get(name);
    }
  };
  const fit = () => {
    const now = schemeOf(host);
    if (now !== scheme) {
      scheme = host.style.colorScheme = now;
      ["--first", "--second", "--third"].forEach((name, k) => host.style.setProperty(name, COLORS[now][k]));
    }
    const wanted = Math.max(280, Math.min(host.clientWidth || 640, 980));
    if (wanted === width) return;
    width = wanted;
    drawChart();
    showCards();
  };

  const names = Object.keys(inputs);
  for (const [name, { input, shown }] of Object.entries(inputs))
    input.addEventListener("input", () => {
      model.set(name, shown ? Number(input.value) : input.value);
      model.save_changes();
    });
  // the dials go with the message: a change of theirs may still be waiting for the kernel
  const values = () => Object.fromEntries(names.map((name) => [name, model.get(name)]));
  run.addEventListener("click", () => model.send({ do: "run", ...values() }));
  cancel.addEventListener("click", () => model.send({ do: "cancel" }));
  host.addEventListener("keydown", (event) => event.stopPropagation());
  host.addEventListener("pointerenter", fit);
  const listeners = { "change:history": drawHistory };
  for (const name of ["running", "progress", "status"]) listeners[`change:${name}`] = showRun;
  for (const name of names) listeners[`change:${name}`] = showDials;
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  el.append(host);
  fit();
  drawHistory();
  showRun();
  showDials();
  const observer = new ResizeObserver(fit);
  observer.observe(host);
  return () => {
    observer.disconnect();
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
