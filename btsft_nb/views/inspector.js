// The token inspector: tokens as text, coloured by what they are, weigh and cost, and the dials that move them.
// One file without a build: anywidget imports it as a module; a static page has it inline and calls `mount`.
// Text from a data set goes through textContent only, and nothing here asks a network for anything.

const KINDS = ["prompt", "tag", "think", "answer"];
const PROMPT = 0, TAG = 1, THINK = 2;
const CHUNK = 160; // tokens that are laid out and painted together, when they come into sight
const PLUS = "0,114,178", MINUS = "213,94,0"; // Okabe and Ito's blue and vermilion
const KIND_RGB = ["128,128,128", "230,159,0", "86,180,233", "0,158,115"];
const KIND_LINE = ["", "double 3px", "dotted 2px", "solid 2px"];
const VIEWS = {
  kind: "what each token is",
  weight: "weight in the loss; 0 where blurred",
  blur: "draw of each thought token; below the threshold it is blurred",
  loss: "weight × nll, in nats; 0 where blurred",
  probability: "probability that the model gives the token",
  kl: "KL to the reference, in nats",
  change: "log-probability, minus that of the other model, in nats",
  gradient: "what the token adds to the gradient: nll (bar below) and format (bar above), in thousandths",
};

// ---------------------------------------------------------------- draws: NumPy's Philox 4x64, in 32-bit limbs

const WIDE = new Uint32Array(4); // the 128-bit product of `multiply`, its lowest limb first

const low = (a, b) => Math.imul(a, b) >>> 0;

/** The upper half of a 32 x 32-bit product; no sum on the way exceeds 32 bits. */
function high(a, b) {
  const al = a & 0xffff, ah = a >>> 16, bl = b & 0xffff, bh = b >>> 16;
  const middle = ah * bl + ((al * bl) >>> 16);
  return ah * bh + (middle >>> 16) + ((al * bh + (middle & 0xffff)) >>> 16);
}

function multiply(ah, al, bh, bl) {
  const second = high(al, bl) + low(al, bh) + low(ah, bl);
  const third = high(al, bh) + high(ah, bl) + low(ah, bh) + Math.floor(second / 4294967296);
  WIDE[0] = low(al, bl);
  WIDE[1] = second;
  WIDE[2] = third;
  WIDE[3] = high(ah, bh) + Math.floor(third / 4294967296);
}

/** The first n numbers of numpy.random.Generator(Philox(key=[key0, key1])).random; a key is [high, low]. */
function philox(key0, key1, n) {
  const out = new Float64Array(n), c = new Uint32Array(8), k = new Uint32Array(4);
  for (let block = 0; block * 4 < n; block++) {
    c.fill(0);
    c[1] = block + 1;
    k.set([...key0, ...key1]);
    for (let round = 0; round < 10; round++) {
      multiply(0xd2e7470e, 0xe14c6c93, c[0], c[1]);
      const l0 = WIDE[0], l1 = WIDE[1], h0 = WIDE[2], h1 = WIDE[3];
      multiply(0xca5a8263, 0x95121157, c[4], c[5]);
      c[0] = WIDE[3] ^ c[2] ^ k[0], c[1] = WIDE[2] ^ c[3] ^ k[1], c[2] = WIDE[1], c[3] = WIDE[0];
      c[4] = h1 ^ c[6] ^ k[2], c[5] = h0 ^ c[7] ^ k[3], c[6] = l1, c[7] = l0;
      const s0 = k[1] + 0x7f4a7c15, s1 = k[3] + 0x84caa73b;
      k[0] += 0x9e3779b9 + (s0 > 0xffffffff), k[1] = s0, k[2] += 0xbb67ae85 + (s1 > 0xffffffff), k[3] = s1;
    }
    for (let i = 0; i < 4 && block * 4 + i < n; i++)
      out[block * 4 + i] = (c[2 * i] * 2097152 + (c[2 * i + 1] >>> 11)) / 9007199254740992;
  }
  return out;
}

/** As `blur.draws` in Python: a number in [0, 1) for each thought token, infinity for all that is never blurred. */
export function draws(data, seed, epoch, keepFirst, unit) {
  const thought = [...data.kinds.keys()].filter((i) => data.kinds[i] === THINK);
  const which = unit === "token" ? thought.map((_, at) => at) : thought.map((i) => data.units[unit][i]);
  const numbers = philox([seed, epoch], data.key, thought.length ? which.at(-1) + 1 : 0);
  const u = new Float64Array(data.kinds.length).fill(Infinity);
  let first = 0;
  thought.forEach((i, at) => {
    if (at === 0 || thought[at - 1] !== i - 1) first = i;
    if (i - first >= keepFirst) u[i] = numbers[which[at]];
  });
  return u;
}

// ---------------------------------------------------------------- what the views say of a token

/** Everything that follows from an example and the dials; all arrays have its length. */
function derive(model, data, u) {
  const weights = Float64Array.from(data.weights);
  for (const [index, start, stop, weight] of model.get("edits"))
    if (index === data.index) for (let i = start; i < stop; i++) if (!data.fixed[i]) weights[i] = weight;
  const threshold = model.get("threshold"), n = data.kinds.length;
  const blurred = Uint8Array.from({ length: n }, (_, i) => u[i] < threshold && weights[i] !== 0);
  let supervised = 0, thought = 0, count = 0;
  for (let i = 0; i < n; i++) {
    supervised += weights[i] !== 0;
    thought += Number.isFinite(u[i]);
    count += blurred[i];
  }
  return { data, u, weights, blurred, supervised: Math.max(supervised, 1), thought, count, beta: model.get("beta") };
}

/** What a view says of token i: a number, two for the gradient, or null where it says none. */
function value(view, state, i) {
  const { data, weights, blurred } = state;
  const weight = blurred[i] ? 0 : weights[i];
  switch (view) {
    case "weight": return weight;
    case "blur": return Number.isFinite(state.u[i]) ? state.u[i] : null;
    case "loss": return -weight * data.log_probs[i];
    case "probability": return i ? Math.exp(data.log_probs[i]) : null;
    case "kl":
    case "change": return data.kinds[i] === PROMPT ? null : data[view][i];
    case "gradient": return [
      (Math.abs(weight) * (1 - Math.exp(data.log_probs[i]))) / state.supervised, state.beta * data.pull[i]];
    default: return null;
  }
}

const parts = (x) => (x === null ? [] : Array.isArray(x) ? x : [x]);
const largest = (view, state) => {
  let top = 0;
  for (let i = 0; i < state.data.kinds.length; i++)
    for (const x of parts(value(view, state, i))) top = Math.max(top, Math.abs(x));
  return top || 1;
};

const short = (x) => (x === null ? "" : x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(1) : String(Number(x.toPrecision(3))));
const brief = (x) => (x === null ? "" : x !== 0 && Math.abs(x) < 0.005 ? "≈0" : String(Number(x.toPrecision(2))));

/** What stands under a token: its number, or its kind where that begins. */
function label(view, state, i) {
  const { kinds } = state.data, x = value(view, state, i);
  if (view === "gradient") return x.some((part) => part >= 5e-5) ? x.map((part) => (1000 * part).toFixed(1)).join("+") : "≈0";
  if (view !== "kind") return brief(x);
  if (state.blurred[i]) return "blurred";
  return kinds[i] === kinds[i - 1] && !state.blurred[i - 1] ? "" : KINDS[kinds[i]];
}

/** How a token looks: its tint, and lines above and below that say the same without colour. */
function look(view, state, i, top) {
  const kind = state.data.kinds[i], x = value(view, state, i);
  const faint = kind === PROMPT || state.blurred[i] ? "opacity:.75;" : "";
  if (view === "kind") {
    const line = KIND_LINE[kind] && `border-bottom:${KIND_LINE[kind]} rgb(${KIND_RGB[kind]});`;
    return `${faint}${line}background:rgba(${KIND_RGB[kind]},${kind === PROMPT ? 0.12 : 0.3})`;
  }
  const bar = (part, rgb) => `inset 0 ${Math.sign(part) * Math.ceil((4 * Math.abs(part)) / top - 0.05)}px rgb(${rgb})`; // no new layout
  if (view === "gradient") {
    const [nll, format] = x, [below, above] = [nll, format].map((part) => (0.5 * part) / top);
    return `${faint}box-shadow:${bar(-nll, MINUS)},${bar(format, PLUS)};background:linear-gradient(` +
      `rgba(${PLUS},${above}),rgba(${PLUS},${above}) 50%,rgba(${MINUS},${below}) 50%,rgba(${MINUS},${below}))`;
  }
  if (x === null || x === 0) return faint;
  const rgb = x < 0 ? MINUS : PLUS;
  return `${faint}box-shadow:${bar(-x, rgb)};background:rgba(${rgb},${(0.5 * Math.abs(x)) / top})`;
}

// ---------------------------------------------------------------- elements

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) {
    if (name === "class") node.className = content;
    else if (typeof content === "function") node.addEventListener(name, content);
    else node.setAttribute(name, content);
  }
  node.append(...children);
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, content] of Object.entries(attributes)) node.setAttribute(name, content);
  node.append(...children);
  return node;
}

/** The token that an element belongs to, or -1. */
const under = (element) => element.closest?.(".t")?._i ?? -1;

const STYLE = `
:host { display: block; color: inherit; font: 13px/1.4 system-ui, sans-serif; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
.bar { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; margin: 2px 0; }
.bar label { display: inline-flex; gap: 5px; align-items: center; white-space: nowrap; }
.bar output { min-width: 2.6em; font-variant-numeric: tabular-nums; }
input[type=range] { width: 110px; accent-color: #0072b2; }
input[type=number] { width: 4.6em; }
input, select, button { font: inherit; }
h3 { font-size: inherit; margin: 0; max-height: 4.2em; overflow: auto; overflow-wrap: anywhere; unicode-bidi: isolate; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; margin: 4px 0; }
.legend span { white-space: pre-wrap; }
.legend b { font-weight: normal; display: inline-block; line-height: 1.2; padding: 0 4px; }
.body { display: flex; flex-wrap: wrap; gap: 8px; align-items: stretch; }
.text { flex: 6 1 320px; min-width: 0; max-height: 460px; overflow: auto; position: relative; padding: 6px;
  font: 13px/2 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; border: 1px solid rgba(128,128,128,.6); }
.text.numbers { line-height: 1.3; }
.text:focus-visible { outline: 2px solid #0072b2; }
.chunk { min-height: var(--guess, 0); }
.t { white-space: pre-wrap; overflow-wrap: anywhere; user-select: none; unicode-bidi: isolate; cursor: default; padding: 2px 0;
  border-left: 1px solid rgba(128,128,128,.35); }
.numbers .t { display: inline-block; text-align: center; margin: 1px 0 5px; padding: 0 2px; max-width: 100%; }
.numbers .t::after { content: attr(data-n) "\\a0"; display: block; font-size: 9px; }
.blurred > * { text-decoration: line-through 1.5px; }
.picked { outline: 2px solid rgb(204,121,167); }
.on { outline: 2px solid currentColor; outline-offset: 1px; }
.card { flex: 1 1 210px; min-height: 210px; border: 1px solid rgba(128,128,128,.6); padding: 6px; font-size: 12px; }
.card.pinned { border: 2px solid currentColor; padding: 5px; }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 8px; margin: 0; }
.card dt { opacity: .75; }
.card dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; max-height: 6em; overflow: auto;
  unicode-bidi: isolate; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.strip { font-size: 11px; margin: 6px 0; }
.strip svg { display: block; width: 100%; height: 54px; border: solid rgba(128,128,128,.6); border-width: 1px 0; }
@media print { .text { max-height: none; overflow: visible; } }
`;

// ---------------------------------------------------------------- the widget

function render({ model, el }) {
  const root = el.shadowRoot || el.attachShadow({ mode: "open" });
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab takes the keys
  const view = new Inspector(model, root);
  const settle = () => el.style.setProperty("color-scheme", isLight(getComputedStyle(el).color) ? "dark" : "light");
  const themes = new MutationObserver(settle);
  const system = matchMedia("(prefers-color-scheme: dark)");
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true });
  system.addEventListener("change", settle);
  requestAnimationFrame(settle);
  return () => {
    themes.disconnect();
    system.removeEventListener("change", settle);
    view.stop();
  };
}

/** Whether a computed colour is light: light text stands on a dark page. */
function isLight(color) {
  const [red, green, blue] = (color.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 128 * (color.startsWith("color(") ? 1 / 255 : 1);
}

class Inspector {
  constructor(model, root) {
    Object.assign(this, { model, root, at: -1, pinned: false, anchor: -1, visible: new Set(), handlers: [] });
    root.replaceChildren(make("style", {}, STYLE), this.head(), this.frame());
    root.addEventListener("keydown", (event) => event.stopPropagation());
    this.observer = new IntersectionObserver((entries) => this.sight(entries), {
      root: this.text, rootMargin: "200px",
    });
    this.listen("data", () => this.load());
    this.listen("epoch unit seed keep_first", () => this.draw());
    this.listen("threshold beta edits", () => this.refresh());
    this.listen("view", () => this.refresh());
    this.listen("selection", () => this.paint());
    this.listen("found", () => {
      const way = this.asked;
      this.asked = 0; // another view's question is not ours
      if (way) this.seek(way, way > 0 ? -1 : Infinity);
    });
    this.printing = () => this.chunks.forEach((chunk) => this.come(chunk));
    this.printed = () => this.watch();
    addEventListener("beforeprint", this.printing);
    addEventListener("afterprint", this.printed);
    this.load();
  }

  listen(names, handler) {
    for (const name of names.split(" ")) {
      this.model.on(`change:${name}`, handler);
      this.handlers.push([name, handler]);
    }
  }

  stop() {
    for (const [name, handler] of this.handlers) this.model.off(`change:${name}`, handler);
    removeEventListener("beforeprint", this.printing);
    removeEventListener("afterprint", this.printed);
    this.observer.disconnect();
    clearTimeout(this.ahead);
    if (this.saving) this.save();
  }

  set(name, content) {
    this.model.set(name, content);
    clearTimeout(this.saving); // a slider sends what it came to, not every step of the way
    this.saving = setTimeout(() => this.save(), 60);
  }

  save() {
    clearTimeout(this.saving);
    this.saving = 0;
    this.model.save_changes();
  }

  // -------------------------------------------------------------- controls

  dial(name, most) {
    const read = (event) => this.set(name, Number(event.target.value));
    const input = make("input", { type: "range", min: 0, max: most, step: 0.01, "aria-label": name, input: read });
    const shown = make("output");
    this.controls[name] = () => {
      input.max = Math.max(most, this.model.get(name));
      input.value = this.model.get(name);
      shown.value = this.model.get(name).toFixed(2);
    };
    return make("label", {}, name, input, shown);
  }

  choice(name, options) {
    const input = make("select", { "aria-label": name, change: (event) => this.set(name, event.target.value) });
    this.controls[name] = () => {
      if (input.dataset.of !== options().join()) input.replaceChildren(...options().map((o) => make("option", {}, o)));
      input.dataset.of = options().join();
      input.value = this.model.get(name);
    };
    return make("label", {}, name, input);
  }

  head() {
    this.controls = {};
    const button = (text, name, click) => make("button", { type: "button", "aria-label": name, title: name, click }, text);
    const epoch = make("input", { type: "number", min: 0, step: 1, "aria-label": "epoch" });
    epoch.addEventListener("input", () => {
      if (/^\d{1,9}$/.test(epoch.value)) this.set("epoch", Number(epoch.value));
    });
    this.controls.epoch = () => { epoch.value = this.model.get("epoch"); };
    this.numbers = make("input", { type: "checkbox", change: () => this.refresh() });
    this.query = make("input", { type: "search", placeholder: "find", "aria-label": "find", size: 12 });
    this.query.addEventListener("keydown", (event) => event.key === "Enter" && this.find(event.shiftKey ? -1 : 1));
    this.title = make("h3");
    this.place = make("span");
    const step = (by) => () => this.set("index", (this.model.get("index") + by + this.count) % this.count);
    this.turn = make("span", {}, button("‹", "previous example", step(-1)), " ", this.place, " ",
      button("›", "next example", step(1)));
    this.beta = this.dial("beta", 2);
    this.legend = make("div", { class: "legend" });
    return make("div", {},
      make("div", { class: "bar" }, this.title, this.turn, this.query),
      make("div", { class: "bar" },
        this.choice("view", () => this.views()), make("label", {}, this.numbers, "numbers"),
        this.dial("threshold", 1), make("label", {}, "epoch", epoch),
        this.choice("unit", () => ["token", "word", "sentence", "thought"]), this.beta),
      this.editor(), this.legend);
  }

  editor() {
    if (!this.model.get("editable")) return "";
    const weight = make("input", { type: "number", step: "any", value: 0, "aria-label": "weight of the selection" });
    const apply = () => {
      const [start, stop] = this.model.get("selection"), w = Number(weight.value);
      if (stop > start && weight.value !== "" && Math.abs(w) <= 1e6)
        this.set("edits", [...this.model.get("edits"), [this.data.index, start, stop, w]]);
    };
    const undo = () => {
      const edits = this.model.get("edits"), last = edits.findLastIndex(([index]) => index === this.data.index);
      this.set("edits", edits.filter((_, at) => at !== last));
    };
    this.picked = make("span", { "aria-live": "polite" });
    return make("div", { class: "bar" }, this.picked, make("label", {}, "weight", weight),
      make("button", { type: "button", click: apply }, "Set"), make("button", { type: "button", click: undo }, "Undo"));
  }

  views() {
    const has = { loss: "log_probs", probability: "log_probs", gradient: "log_probs", kl: "kl", change: "change" };
    return Object.keys(VIEWS).filter((view) => !has[view] || this.data[has[view]]);
  }

  frame() {
    this.strip = make("div", { class: "strip" });
    this.text = make("div", {
      class: "text", tabindex: 0, role: "listbox", "aria-label": "tokens", "aria-multiselectable": "true",
      keydown: (event) => this.key(event),
      pointerover: ({ target }) => !this.pinned && under(target) >= 0 && this.show(under(target)),
      pointerdown: (event) => this.press(event),
      pointermove: ({ buttons, target }) => {
        const i = under(target);
        if (buttons && this.anchor >= 0 && i >= 0 && i !== this.at) this.select(this.anchor, i);
      },
    });
    this.card = make("div", { class: "card", "aria-live": "polite" });
    return make("div", {}, this.strip, make("div", { class: "body" }, this.text, this.card));
  }

  // -------------------------------------------------------------- from data to tokens

  load() {
    this.data = this.model.get("data");
    const all = this.model.get("count"), held = this.model.get("held") ?? all; // a page may hold a part of them
    this.count = held;
    this.title.textContent = this.data.id;
    this.place.textContent = `${this.data.number} of ${all}${held < all ? `, ${held} of them here` : ""}`;
    this.turn.hidden = all < 2;
    this.beta.hidden = !this.data.log_probs;
    this.numbers.checked = this.data.kinds.length <= 250;
    Object.assign(this, { at: -1, pinned: false, anchor: -1, held: null });
    this.chunks = this.split();
    this.state = null;
    this.known = new Map(); // draws of this example
    this.visible.clear();
    this.text.replaceChildren(...this.chunks);
    this.chunks.slice(0, 4).forEach((chunk) => this.come(chunk)); // the rest as it comes into sight
    this.watch();
    this.text.scrollTop = 0;
    this.card.replaceChildren("Point at a token, or walk with the arrow keys; Enter pins this card.");
    this.draw();
    const { after } = this;
    this.after = null;
    if (after) after();
  }

  /** Chunks of tokens; one ends at a line break where it can, so that it hardly shows. */
  split() {
    const chunks = [], texts = this.data.texts;
    for (let start = 0, i = 0; i < texts.length; i++) {
      const size = i + 1 - start;
      if (i + 1 < texts.length && !(size >= CHUNK / 2 && texts[i].endsWith("↵")) && size < CHUNK) continue;
      const chunk = make("div", { class: "chunk" });
      chunk.style.setProperty("--guess", `${Math.ceil((size * 4.5) / 80) * 26}px`);
      chunks.push(Object.assign(chunk, { start, stop: i + 1 }));
      start = i + 1;
    }
    return chunks;
  }

  fill(chunk) {
    if (chunk.childNodes.length) return;
    for (let i = chunk.start; i < chunk.stop; i++) {
      const text = this.data.texts[i];
      const token = make("span", { class: "t", role: "option", id: `t${i}` }, make("span", {}, text || " "));
      token._i = i;
      chunk.append(token, text.includes("↵") ? make("br") : "");
    }
    chunk.style.removeProperty("--guess");
    if (this.state) this.paintChunk(chunk, this.scale());
  }

  /** A chunk comes into sight, and is painted anew from now on. */
  come(chunk) {
    this.visible.add(chunk);
    if (!chunk.childNodes.length) this.fill(chunk);
    else this.paintChunk(chunk, this.scale());
  }

  watch() {
    this.observer.disconnect();
    this.chunks.forEach((chunk) => this.observer.observe(chunk));
  }

  sight(entries) {
    for (const { target, isIntersecting } of entries)
      if (isIntersecting) this.come(target);
      else this.visible.delete(target);
  }

  draw() {
    const epoch = this.model.get("epoch");
    this.u = this.drawn(epoch);
    this.refresh();
    clearTimeout(this.ahead); // a step further or back shall not wait for its draws
    this.ahead = setTimeout(() => [epoch + 1, epoch - 1].forEach((next) => next >= 0 && this.drawn(next)), 20);
  }

  drawn(epoch) {
    const [seed, keep, unit] = ["seed", "keep_first", "unit"].map((name) => this.model.get(name));
    const key = [seed, keep, unit, epoch].join();
    if (!this.known.has(key)) this.known.set(key, draws(this.data, seed, epoch, keep, unit));
    return this.known.get(key);
  }

  refresh() {
    this.state = derive(this.model, this.data, this.u);
    this.top = null;
    for (const show of Object.values(this.controls)) show();
    this.text.classList.toggle("numbers", this.numbers.checked);
    this.paint();
    this.explain();
    this.plot();
    if (this.at >= 0) this.show(this.at);
  }

  scale() {
    return (this.top ??= this.model.get("view") === "probability" || this.model.get("view") === "blur" ? 1
      : largest(this.model.get("view"), this.state));
  }

  paint() {
    const top = this.scale(), [start, stop] = this.range();
    for (const chunk of this.visible) this.paintChunk(chunk, top);
    if (this.picked) this.picked.textContent = stop > start ? `${stop - start} tokens selected` : "drag to select tokens";
  }

  range() {
    const chosen = this.model.get("selection");
    return chosen.length ? chosen : [0, 0];
  }

  paintChunk(chunk, top) {
    const { state } = this, view = this.model.get("view"), numbers = this.numbers.checked, [start, stop] = this.range();
    for (const token of chunk.children) {
      const i = token._i;
      if (i === undefined) continue;
      const name = `t${state.blurred[i] ? " blurred" : ""}${i >= start && i < stop ? " picked" : ""}${i === this.at ? " on" : ""}`;
      const style = look(view, state, i, top), number = numbers ? label(view, state, i) : "";
      if (token._name !== name) {
        token.className = token._name = name;
        token.setAttribute("aria-selected", i >= start && i < stop);
      }
      if (token._style !== style) token.style.cssText = token._style = style;
      if (token._number !== number) token.dataset.n = token._number = number;
    }
  }

  // -------------------------------------------------------------- legend, strip, card

  explain() {
    const view = this.model.get("view"), { state } = this, top = this.scale();
    const swatch = (style, text) => make("span", {}, Object.assign(make("b", {}, "ab"), { style }), ` ${text}`);
    const notes = [];
    if (view === "kind") {
      KINDS.forEach((name, kind) => {
        const line = KIND_LINE[kind] && `border-bottom:${KIND_LINE[kind]} rgb(${KIND_RGB[kind]});`;
        const count = this.data.kinds.filter((k) => k === kind).length;
        notes.push(swatch(`${line}background:rgba(${KIND_RGB[kind]},.3)`, `${name} ${count}`));
      });
    } else if (view === "gradient") {
      let sums = [0, 0];
      for (let i = 0; i < state.weights.length; i++) sums = sums.map((sum, k) => sum + value(view, state, i)[k]);
      notes.push(swatch(`border-bottom:solid 4px rgb(${MINUS})`, `nll, in all ${short(1000 * sums[0])}`));
      notes.push(swatch(`border-top:solid 4px rgb(${PLUS})`, `format, in all ${short(1000 * sums[1])}`));
    } else {
      notes.push(swatch(`border-bottom:solid 4px rgb(${PLUS});background:rgba(${PLUS},.5)`, short(top)));
      notes.push(swatch(`border-bottom:solid 2px rgb(${PLUS});background:rgba(${PLUS},.25)`, short(top / 2)));
      if ([...this.data.kinds.keys()].some((i) => value(view, state, i) < 0))
        notes.push(swatch(`border-top:solid 4px rgb(${MINUS});background:rgba(${MINUS},.5)`, short(-top)));
    }
    notes.push(make("span", {}, make("s", {}, "blurred"), ` ${state.count} of ${state.thought} thought tokens`));
    if (this.data.log_probs) {
      const r = this.data.reward;
      notes.push(make("span", {}, `expected reward R ${short(r)}; β (1 − R) = ${short(state.beta * (1 - r))}`));
    }
    this.legend.replaceChildren(make("span", {}, `${view}: ${VIEWS[view]}`), ...notes);
  }

  /** The probability of each tag along the completion; what the data has there is marked. */
  plot() {
    const { data } = this, first = Math.max(data.kinds.findIndex((kind) => kind !== PROMPT), 0);
    this.strip.style.display = data.open ? "" : "none";
    if (!data.open || this.plotted === data) return;
    this.plotted = data;
    const span = data.kinds.length - first, bins = Math.min(span, 400), places = Array.from({ length: bins + 1 },
      (_, b) => first + Math.floor((b * span) / bins));
    const height = (ps, b) => 50 * Math.max(...ps.slice(places[b], Math.max(places[b + 1], places[b] + 1)));
    const bars = (ps, left, style) => places.slice(0, -1).flatMap((_, b) => (height(ps, b) < 0.5 ? [] : svg("rect", {
      x: (800 * (b + left)) / bins, y: 52 - height(ps, b), width: (800 * 0.4) / bins, height: height(ps, b), style,
      "vector-effect": "non-scaling-stroke" })));
    const marks = data.kinds.flatMap((kind, i) => (kind !== TAG ? [] : svg("rect", {
      x: (800 * (i - first)) / span, y: 0, width: Math.max(800 / span, 3), height: 54, fill: "rgba(230,159,0,.35)" })));
    const picture = svg("svg", { viewBox: "0 0 800 54", preserveAspectRatio: "none", role: "img",
      "aria-label": `probability of the think tags along ${span} tokens` },
      ...marks, ...bars(data.open, 0.08, `fill:rgb(${PLUS})`),
      ...bars(data.close, 0.52, `fill:none;stroke:rgb(${MINUS});stroke-width:${bins < 150 ? 2 : 1}`));
    const note = `probability, 0 to 1, of <think> (filled) and </think> (outlined) along the ${span} tokens of the ` +
      `completion; shaded: where the data has a tag`;
    this.strip.replaceChildren(note, picture);
  }

  show(i) {
    const before = this.at;
    this.at = i;
    for (const at of [before, i]) {
      const token = this.token(at);
      if (token) token.classList.toggle("on", at === i), (token._name = token.className);
    }
    this.text.setAttribute("aria-activedescendant", `t${i}`);
    const { data, state } = this, rows = [["token", `${i}: ${data.texts[i]}`], ["id", data.ids[i]]];
    rows.push(["kind", KINDS[data.kinds[i]] + (state.blurred[i] ? ", blurred" : "")]);
    rows.push(["weight", short(state.weights[i])]);
    if (Number.isFinite(this.u[i])) rows.push(["draw", this.u[i].toFixed(4)]);
    if (data.log_probs && i > 0) {
      rows.push(["nll", `${short(-data.log_probs[i])} nats`], ["probability", short(Math.exp(data.log_probs[i]))]);
      rows.push(["rank", data.rank[i]]);
      if (data.kl) rows.push(["KL", `${short(data.kl[i])} nats`]);
      if (data.change) rows.push(["change", `${short(data.change[i])} nats`]);
      const [nll, format] = value("gradient", state, i).map((part) => short(1000 * part));
      rows.push(["gradient", `nll ${nll}, format ${format} ‰`]);
      rows.push(["p(tags)", `${short(data.open[i])}, ${short(data.close[i])}`]);
      data.top[i].forEach((id, k) => rows.push([k ? "" : "model says", `${short(data.top_probs[i][k])}  ${data.names[id]}`]));
    }
    this.card.classList.toggle("pinned", this.pinned);
    const list = make("dl");
    for (const [name, content] of rows) list.append(make("dt", {}, name), make("dd", {}, String(content)));
    this.card.replaceChildren(list);
  }

  // -------------------------------------------------------------- pointer and keyboard

  token(i) {
    const chunk = this.chunks.find((c) => i >= c.start && i < c.stop);
    if (!chunk) return null;
    this.fill(chunk);
    return [...chunk.children].find((token) => token._i === i);
  }

  press(event) {
    const i = under(event.target);
    if (i < 0 || event.button) return;
    if (event.shiftKey && this.at >= 0) return this.select(this.at, i);
    Object.assign(this, { anchor: i, pinned: true, held: null });
    this.set("selection", []);
    this.show(i);
    addEventListener("pointerup", () => { this.anchor = -1; }, { once: true });
  }

  select(from, to) {
    const { joined } = this.data;
    let [start, stop] = from <= to ? [from, to + 1] : [to, from + 1];
    while (joined.includes(start)) start--; // tokens that are pieces of one character stay together
    while (joined.includes(stop)) stop++;
    this.set("selection", [start, stop]);
    this.show(to);
  }

  key(event) {
    const last = this.data.kinds.length - 1, from = Math.max(this.at, 0);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowRight: from + (this.at >= 0), ArrowLeft: from - 1, Home: 0, End: last,
      ArrowDown: event.key === "ArrowDown" && this.line(from, 1), ArrowUp: event.key === "ArrowUp" && this.line(from, -1) };
    if (event.key === "Enter") this.pinned = this.at >= 0 && !this.pinned;
    else if (event.key === "Escape") this.pinned = false, this.held = null, this.set("selection", []);
    else if (!(event.key in moves)) return;
    event.preventDefault();
    if (event.key in moves) {
      const to = Math.min(Math.max(moves[event.key], 0), last);
      if (!event.shiftKey) this.held = null;
      else this.select((this.held ??= from), to);
      this.go(to);
    } else if (this.at >= 0) this.show(this.at);
  }

  /** The token above or below, where it stands nearest. */
  line(from, way) {
    const here = this.token(from).getBoundingClientRect(), middle = here.left + here.width / 2;
    let best = from, gap = Infinity, row = null;
    for (let i = from + way; i >= 0 && i < this.data.kinds.length; i += way) {
      const box = this.token(i).getBoundingClientRect();
      if (row === null && Math.abs(box.top - here.top) < here.height / 2) continue;
      row ??= box.top;
      if (Math.abs(box.top - row) > here.height / 2) break;
      const distance = Math.abs(box.left + box.width / 2 - middle);
      if (distance < gap) [best, gap] = [i, distance];
    }
    return best;
  }

  go(i) {
    const token = this.token(i), box = token.getBoundingClientRect(), frame = this.text.getBoundingClientRect();
    if (box.top < frame.top) this.text.scrollTop += box.top - frame.top - 20;
    else if (box.bottom > frame.bottom) this.text.scrollTop += box.bottom - frame.bottom + 20;
    this.show(i);
  }

  // -------------------------------------------------------------- search

  /** The next or previous place of the query: in this example, then in the others that have it. */
  find(way) {
    if (!this.query.value) return;
    if (this.model.get("found").query === this.query.value) return this.seek(way, this.at);
    this.asked = way;
    this.set("query", this.query.value); // `found` comes back, and then it is sought
  }

  seek(way, from) {
    const query = this.model.get("found").query.toLowerCase(), { texts, index } = this.data;
    const text = texts.join("").toLowerCase(), hits = []; // the tokens in which the query begins
    for (let at = text.indexOf(query), i = -1, end = 0; at >= 0; at = text.indexOf(query, at + 1)) {
      while (end <= at) end += texts[++i].toLowerCase().length;
      if (hits.at(-1) !== i) hits.push(i);
    }
    const next = way > 0 ? hits.find((i) => i > from) : hits.findLast((i) => i < from);
    if (next !== undefined) return this.go(next);
    const { examples } = this.model.get("found");
    const other = way > 0 ? (examples.find((i) => i > index) ?? examples[0])
      : (examples.findLast((i) => i < index) ?? examples.at(-1));
    if (other === undefined) return this.card.replaceChildren(`not found: ${this.query.value}`);
    if (other === index) return void (hits.length && this.go(hits.at(way > 0 ? 0 : -1)));
    this.after = () => this.data.texts.join("").toLowerCase().includes(query) && this.seek(way, way > 0 ? -1 : Infinity);
    this.set("index", other);
  }
}

// ---------------------------------------------------------------- a page without Python

/** Puts the inspector in place of each static view with this key; `state` holds the traits and all examples. */
export function mount(key, state) {
  for (const el of document.querySelectorAll(`[data-btsft="${key}"]`)) {
    el.removeAttribute("data-btsft");
    el.replaceChildren();
    const listeners = {}, traits = { ...state, found: {}, data: state.examples[state.index], selection: [] };
    const tell = (name) => (listeners[`change:${name}`] || []).forEach((listener) => listener());
    const model = {
      get: (name) => traits[name],
      on: (name, listener) => (listeners[name] ??= []).push(listener),
      off: () => {},
      save_changes: () => {},
      set(name, content) {
        traits[name] = content;
        if (name === "index") Object.assign(traits, { data: state.examples[content], selection: [] });
        if (name === "query") {
          const has = (example) => example.texts.join("").toLowerCase().includes(content.toLowerCase());
          traits.found = { query: content, examples: state.examples.flatMap((example, i) => (has(example) ? [i] : [])) };
        }
        tell(name);
        if (name === "index") tell("data");
        if (name === "query") tell("found");
      },
    };
    render({ model, el });
  }
}

export default { render };
