// The token inspector in a browser: tokens as text, coloured by a view, and the dials that move it.
// One file without a build: anywidget imports it as a module, a page has it inline and calls `mount`.
// Draws, values, colours and the list of views come from Python. Text from a data set goes through
// textContent only, and nothing here asks a network for anything.

const KINDS = ["prompt", "tag", "think", "answer"];
const PROMPT = 0, TAG = 1;
const UNITS = ["token", "word", "sentence", "thought"];
const CHUNK = 160; // tokens that are laid out and painted together, when they come into sight

// ---------------------------------------------------------------- what a view says of a token

/** What the dials make of the example that is shown; all lists have its length. */
function derive(model) {
  const values = model.get("token_values"), draws = model.get("token_draws");
  const threshold = model.get("threshold");
  const blurred = draws.map((draw, i) => draw < threshold && values.weight[i] !== 0);
  return {
    values, draws, threshold, blurred, kinds: model.get("data").kinds,
    beta: model.get("beta"), view: model.get("view"), views: model.get("views"),
  };
}

/** A number, two for the gradient, or null where the view says none of token i. */
function value(state, i, view = state.view) {
  if (view === "kind") return null;
  if (view === "blur") return state.draws[i] < 1 ? state.draws[i] : null;
  const x = state.views[view].is_of_loss && state.blurred[i] ? 0 : state.values[view][i];
  return view === "gradient" ? [x, state.beta * state.values.format[i]] : x;
}

/** The largest value of the view, which has the full tint. */
function largest(state) {
  if (state.view === "probability" || state.view === "blur") return 1;
  const size = (_, i) => Math.max(...[value(state, i)].flat().map(Math.abs));
  return state.kinds.map(size).reduce((a, b) => Math.max(a, b), 0) || 1;
}

const inThousandths = (pair) => pair.map((part) => (1000 * part).toFixed(1)).join("+");
const isTiny = (x, least) => x !== 0 && Math.abs(x) < least;

/** A number for the card and the legend. */
function long(x) {
  return isTiny(x, 0.001) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
}

/** What stands under a token. */
function short(x) {
  if (x === null) return "";
  if (Array.isArray(x)) return x.some((part) => part >= 5e-5) ? inThousandths(x) : "≈0";
  return isTiny(x, 0.005) ? "≈0" : String(Number(x.toPrecision(2)));
}

/** Class and style of a token: its tint, and the lines or bars that say the same. */
function look(state, i, top) {
  if (state.view === "kind") return [KINDS[state.kinds[i]], ""];
  const x = value(state, i);
  if (Array.isArray(x)) {
    const [below, above] = x.map((part) => (part / top).toFixed(3));
    return ["both", `--below:${below};--above:${above}`];
  }
  const part = Math.abs(x) / top;
  return part < 0.01 ? ["", ""] : [x < 0 ? "minus" : "plus", `--part:${part.toFixed(3)}`];
}

// ---------------------------------------------------------------- elements

const SVG = "http://www.w3.org/2000/svg";

/** An element; an attribute that is a function listens to the event of its name. */
function make(tag, attributes = {}, ...children) {
  const isDrawn = tag === "svg" || tag === "rect";
  const node = isDrawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) {
    if (typeof content === "function") node.addEventListener(name, content);
    else node.setAttribute(name, content);
  }
  node.append(...children);
  return node;
}

function button(text, name, click) {
  return make("button", { type: "button", "aria-label": name, title: name, click }, text);
}

/** The token that an element belongs to, or -1. */
const under = (element) => element.closest?.(".t")?._i ?? -1;

/** Whether a computed colour is light: light text stands on a dark page. */
function isLight(color) {
  const [red, green, blue] = (color.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
  const full = color.startsWith("color(") ? 1 : 255;
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > full / 2;
}

// ---------------------------------------------------------------- the widget

function render({ model, el }) {
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab takes the keys
  const view = new Inspector(model, el.shadowRoot || el.attachShadow({ mode: "open" }));
  const settle = () => {
    el.style.setProperty("color-scheme", isLight(getComputedStyle(el).color) ? "dark" : "light");
  };
  requestAnimationFrame(settle);
  el.addEventListener("pointerenter", settle); // the theme may have changed
  return () => view.stop();
}

class Inspector {
  constructor(model, root) {
    Object.assign(this, { model, root, controls: [], handlers: [], visible: new Set() });
    root.replaceChildren(make("style", {}, model.get("css")), this.head(), this.frame());
    root.addEventListener("keydown", (event) => event.stopPropagation());
    this.observer = new IntersectionObserver((entries) => this.sight(entries), {
      root: this.text, rootMargin: "200px",
    });
    this.listen("data", () => this.load());
    for (const name of ["threshold", "beta", "epoch", "unit", "view"])
      this.listen(name, () => this.refresh());
    this.listen("token_draws", () => this.refresh());
    this.listen("token_values", () => this.refresh());
    this.listen("selection", () => this.paint());
    this.printing = () => this.chunks.forEach((chunk) => this.come(chunk));
    this.printed = () => this.watch();
    addEventListener("beforeprint", this.printing);
    addEventListener("afterprint", this.printed);
    this.load();
  }

  listen(name, handler) {
    this.model.on(`change:${name}`, handler);
    this.handlers.push([name, handler]);
  }

  stop() {
    for (const [name, handler] of this.handlers) this.model.off(`change:${name}`, handler);
    removeEventListener("beforeprint", this.printing);
    removeEventListener("afterprint", this.printed);
    this.observer.disconnect();
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

  /** A labelled input that follows a trait, and sets it. */
  control(name, input, title = "") {
    const isText = typeof this.model.get(name) === "string", number = make("span");
    input.ariaLabel = name;
    input.addEventListener("input", () => {
      if (input.value !== "" && input.checkValidity())
        this.set(name, isText ? input.value : Number(input.value));
    });
    this.controls.push(() => {
      input.value = this.model.get(name);
      if (input.type === "range") number.textContent = this.model.get(name).toFixed(2);
    });
    return make("label", { title }, name, input, number);
  }

  slider(name, max, title) {
    return this.control(name, make("input", { type: "range", min: 0, max, step: 0.01 }), title);
  }

  choice(name, options, title) {
    const shown = options.map((option) => make("option", {}, option));
    return this.control(name, make("select", {}, ...shown), title);
  }

  epochs() {
    const known = this.model.get("epochs");
    if (known) return this.choice("epoch", known, "the epochs whose draws this page has");
    return this.control("epoch", make("input", { type: "number", min: 0, max: 4294967295 }));
  }

  head() {
    this.numbers = make("input", { type: "checkbox", change: () => this.refresh() });
    this.query = make("input", {
      type: "search", placeholder: "find", "aria-label": "find", size: 12,
      keydown: (event) => event.key === "Enter" && this.find(event.shiftKey ? -1 : 1),
    });
    this.title = make("h3");
    this.place = make("span");
    const step = (by) => () => {
      const count = this.model.get("count");
      this.set("index", (this.model.get("index") + by + count) % count);
    };
    this.turn = make("span", {}, button("‹", "previous example", step(-1)), " ",
      button("›", "next example", step(1)));
    const most = Math.max(2, this.model.get("beta"));
    this.beta = this.slider("beta", most, "moves the format term and the view gradient");
    this.legend = make("div", { class: "legend" });
    return make("div", {},
      make("div", { class: "bar" }, this.title, this.place, this.turn, this.query),
      make("div", { class: "bar" }, this.choice("view", Object.keys(this.model.get("views"))),
        make("label", {}, this.numbers, "numbers"), this.slider("threshold", 1, "blurred below it"),
        this.epochs(), this.choice("unit", UNITS), this.beta),
      this.editor(), this.legend);
  }

  editor() {
    if (!this.model.get("editable")) return "";
    const weight = make("input", {
      type: "number", step: "any", value: 0, "aria-label": "weight of the selection",
    });
    const apply = () => {
      const [start, stop] = this.range(), number = Number(weight.value);
      const edit = [this.model.get("index"), start, stop, number];
      if (stop > start && weight.value !== "" && Math.abs(number) <= 1e6)
        this.set("edits", [...this.model.get("edits"), edit]);
    };
    const undo = () => {
      const edits = this.model.get("edits"), index = this.model.get("index");
      const last = edits.findLastIndex((edit) => edit[0] === index);
      this.set("edits", edits.filter((_, at) => at !== last));
    };
    this.picked = make("span", { "aria-live": "polite" });
    return make("div", { class: "bar" }, this.picked, make("label", {}, "weight", weight),
      button("Set", "Set", apply), button("Undo", "Undo", undo));
  }

  frame() {
    this.strip = make("div", { class: "strip" });
    this.text = make("div", {
      class: "text", tabindex: 0, role: "listbox", "aria-label": "tokens",
      "aria-multiselectable": "true",
      keydown: (event) => this.key(event),
      pointerover: ({ target }) => !this.pinned && under(target) >= 0 && this.show(under(target)),
      pointerdown: (event) => this.press(event),
      pointermove: ({ buttons, target }) => {
        const i = under(target);
        if (buttons && this.anchor >= 0 && i >= 0 && i !== this.at) this.select(this.anchor, i);
      },
    });
    this.card = make("div", { class: "card" });
    this.body = make("div", { class: "body" }, this.text, this.card);
    return make("div", {}, this.strip, this.body);
  }

  // -------------------------------------------------------------- from data to tokens

  load() {
    this.data = this.model.get("data");
    const all = this.model.get("count"), held = this.model.get("examples")?.length ?? all;
    this.title.textContent = this.data.id;
    this.place.textContent = `${this.model.get("index") + 1} of ${all}`;
    this.turn.hidden = held < 2; // a page may hold one of many
    this.beta.hidden = !this.data.nll;
    this.body.classList.toggle("scored", Boolean(this.data.nll));
    this.numbers.checked = this.data.kinds.length <= 250;
    Object.assign(this, { at: -1, pinned: false, anchor: -1, shifted: null, state: null });
    this.chunks = this.split();
    this.visible.clear();
    this.text.replaceChildren(...this.chunks);
    this.chunks.slice(0, 4).forEach((chunk) => this.come(chunk)); // the rest as it comes into sight
    this.watch();
    this.text.scrollTop = 0;
    const hint = "Point at a token, or walk with the arrow keys; Enter pins this card.";
    this.card.replaceChildren(hint);
    this.plot();
    this.refresh();
  }

  /** Chunks of tokens; one ends at a line break where it can, so that it hardly shows. */
  split() {
    const chunks = [], { texts } = this.data;
    let start = 0;
    for (let i = 0; i < texts.length; i++) {
      const size = i + 1 - start;
      const ends = size >= CHUNK || (size >= CHUNK / 2 && texts[i].endsWith("↵"));
      if (!ends && i + 1 < texts.length) continue;
      const chunk = make("div", { class: "chunk" });
      chunk.style.setProperty("--guess", `${Math.ceil((size * 4.5) / 80) * 26}px`);
      chunks.push(Object.assign(chunk, { start, stop: i + 1 }));
      start = i + 1;
    }
    return chunks;
  }

  layOut(chunk) {
    if (chunk.childNodes.length) return;
    for (let i = chunk.start; i < chunk.stop; i++) {
      const text = this.data.texts[i];
      const token = make("span", { role: "option", id: `t${i}` }, make("span", {}, text));
      token._i = i;
      chunk.append(token, text.includes("↵") ? make("br") : "");
    }
    chunk.style.removeProperty("--guess");
  }

  /** A chunk comes into sight, and is painted anew from now on. */
  come(chunk) {
    this.visible.add(chunk);
    this.layOut(chunk);
    this.paintChunk(chunk);
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

  refresh() {
    const state = derive(this.model);
    if (state.draws.length !== this.data.kinds.length) return; // the other half is on its way
    this.state = state;
    this.top = largest(state);
    for (const show of this.controls) show();
    this.text.classList.toggle("numbers", this.numbers.checked);
    this.paint();
    this.explain();
    if (this.at >= 0) this.show(this.at);
  }

  range() {
    const chosen = this.model.get("selection");
    return chosen.length ? chosen : [0, 0];
  }

  paint() {
    const [start, stop] = this.range();
    for (const chunk of this.visible) this.paintChunk(chunk);
    if (!this.picked) return;
    this.picked.textContent =
      stop > start ? `${stop - start} tokens selected` : "drag to select tokens";
  }

  paintChunk(chunk) {
    const { state } = this, [start, stop] = this.range();
    if (!state) return;
    for (const token of chunk.children) {
      const i = token._i;
      if (i === undefined) continue; // a line break
      const [tint, style] = look(state, i, this.top), isPicked = i >= start && i < stop;
      const marks = [state.blurred[i] && "blurred", isPicked && "picked", i === this.at && "on"];
      const name = ["t", tint, ...marks].filter(Boolean).join(" ");
      const label = this.label(i);
      if (token._name !== name) token.className = token._name = name;
      if (token._style !== style) token.style.cssText = token._style = style;
      if (token._label !== label) token.ariaLabel = token._label = label;
      token.ariaSelected = isPicked;
      const number = this.numbers.checked ? this.number(i) : "";
      if (token.dataset.n !== number) token.dataset.n = number;
    }
  }

  /** What stands under a token: its number, or its kind where that begins. */
  number(i) {
    if (this.state.view !== "kind") return short(value(this.state, i));
    const { kinds } = this.data;
    return kinds[i] === kinds[i - 1] ? "" : KINDS[kinds[i]];
  }

  /** What a screen reader says of a token. */
  label(i) {
    const { view, blurred } = this.state;
    const number = view === "kind" ? "" : `${view} ${short(value(this.state, i)) || "none"}`;
    const words = [this.data.texts[i], KINDS[this.data.kinds[i]], blurred[i] && "blurred", number];
    return words.filter(Boolean).join(", ");
  }

  // -------------------------------------------------------------- legend, strip, card

  explain() {
    const { data, state, top } = this, { view } = state;
    const note = (...children) => make("span", {}, ...children);
    const swatch = (name, text, style = "") =>
      note(make("b", { class: name, style }, "ab"), ` ${text}`);
    const notes = [note(`${view}: ${state.views[view].explanation}`)];
    if (view === "kind") {
      const count = (kind) => data.kinds.filter((k) => k === kind).length;
      notes.push(...KINDS.map((name, kind) => swatch(name, `${name} ${count(kind)}`)));
    } else if (view === "gradient") {
      notes.push(swatch("both", `nll ${long(1000 * top)}`, "--below:1;--above:0"));
      notes.push(swatch("both", `format ${long(1000 * top)}`, "--below:0;--above:1"));
    } else {
      notes.push(swatch("plus", long(top), "--part:1"), swatch("plus", long(top / 2), "--part:.5"));
      if (data.kinds.some((_, i) => value(state, i) < 0))
        notes.push(swatch("minus", long(-top), "--part:1"));
    }
    const count = state.blurred.filter(Boolean).length;
    const thought = state.draws.filter((draw) => draw < 1).length;
    notes.push(note(make("s", {}, "blurred"), ` ${count} of ${thought} thought tokens`));
    if (data.nll)
      notes.push(note(`expected format reward R = ${long(data.reward)}, ` +
        `format term β (1 − R) = ${long(state.beta * (1 - data.reward))}`));
    this.legend.replaceChildren(...notes);
  }

  /** The probability of each tag along the completion; what the data has there is shaded. */
  plot() {
    const { data } = this, first = Math.max(data.kinds.findIndex((kind) => kind !== PROMPT), 0);
    this.strip.hidden = !data.nll;
    if (!data.nll) return;
    const span = data.kinds.length - first, least = span / 400; // of a width, to be seen
    const rects = [];
    const bar = (name, x, probability, width) => {
      const height = 50 * probability, size = { width: Math.max(width, least), height };
      if (height >= 0.5) rects.push(make("rect", { class: name, x, y: 52 - height, ...size }));
    };
    for (let i = first; i < data.kinds.length; i++) {
      if (data.kinds[i] === TAG) bar("place", i - first, 1, 1);
      bar("open", i - first + 0.08, data.tags[0][i], 0.4);
      bar(span < 150 ? "close" : "close many", i - first + 0.52, data.tags[1][i], 0.4);
    }
    const name = `probability of the think tags along ${span} tokens`;
    const box = { viewBox: `0 0 ${span} 54`, preserveAspectRatio: "none" };
    const note = "probability, 0 to 1, of <think> (filled) and </think> (outlined) along the " +
      `${span} tokens of the completion; shaded: where the data has a tag`;
    this.strip.replaceChildren(note, make("svg", { ...box, role: "img", "aria-label": name }, ...rects));
  }

  show(i) {
    const before = this.at;
    this.at = i;
    for (const at of [before, i]) {
      const token = this.token(at);
      if (!token) continue;
      token.classList.toggle("on", at === i);
      token._name = token.className;
    }
    this.text.setAttribute("aria-activedescendant", `t${i}`);
    this.card.classList.toggle("pinned", this.pinned);
    const list = make("dl");
    for (const [name, content] of this.rows(i))
      list.append(make("dt", {}, name), make("dd", {}, String(content)));
    this.card.replaceChildren(list);
  }

  /** What the card says of a token: pairs of a name and what stands beside it. */
  rows(i) {
    const { data, state } = this, { draws, threshold } = state;
    const rows = [["token", `${i}: ${data.texts[i]}`], ["id", data.ids[i]]];
    rows.push(["kind", KINDS[data.kinds[i]]]);
    if (draws[i] < 1) {
      const draw = (Math.floor(1000 * draws[i]) / 1000).toFixed(3); // as Python rounds for a page
      const sign = draws[i] < threshold ? "<" : "≥";
      rows.push(["draw", `${draw} ${sign} threshold ${long(threshold)}`]);
    }
    if (state.blurred[i]) rows.push(["blurred", "no loss; the anchor's KL instead"]);
    rows.push(["weight", long(value(state, i, "weight")) +
      (state.blurred[i] ? ` (${long(state.values.weight[i])} if not blurred)` : "")]);
    if (!data.nll || i === 0) return rows;
    rows.push(["nll", `${long(data.nll[i])} nats`], ["rank", data.rank[i]]);
    for (const view of ["probability", "loss", "kl", "change"])
      if (view in state.views && value(state, i, view) !== null)
        rows.push([view, long(value(state, i, view))]);
    const [nll, format] = value(state, i, "gradient").map((part) => long(1000 * part));
    rows.push(["gradient", `nll ${nll}, format ${format} ‰`]);
    rows.push(["p(<think>)", long(data.tags[0][i])], ["p(</think>)", long(data.tags[1][i])]);
    data.top[i].forEach((id, rank) => rows.push(
      [rank ? "" : "model says", `${long(data.top_probs[i][rank])}  ${data.names[id]}`]));
    return rows;
  }

  // -------------------------------------------------------------- pointer and keyboard

  token(i) {
    const chunk = this.chunks.find((c) => i >= c.start && i < c.stop);
    if (!chunk) return null;
    this.layOut(chunk);
    return [...chunk.children].find((token) => token._i === i);
  }

  press(event) {
    const i = under(event.target);
    if (i < 0 || event.button) return;
    if (event.shiftKey && this.at >= 0) return this.select(this.at, i);
    Object.assign(this, { anchor: i, pinned: true, shifted: null });
    this.set("selection", []);
    this.show(i);
    addEventListener("pointerup", () => { this.anchor = -1; }, { once: true });
  }

  select(from, to) {
    const { joined } = this.data;
    let start = Math.min(from, to), stop = Math.max(from, to) + 1;
    while (joined.includes(start)) start--; // pieces of one character stay together
    while (joined.includes(stop)) stop++;
    this.set("selection", [start, stop]);
    this.show(to);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.data.kinds.length - 1, from = Math.max(this.at, 0);
    const moves = {
      ArrowRight: () => from + (this.at >= 0), ArrowLeft: () => from - 1,
      ArrowDown: () => this.line(from, 1), ArrowUp: () => this.line(from, -1),
      Home: () => 0, End: () => last,
    };
    if (event.key in moves) {
      const to = Math.min(Math.max(moves[event.key](), 0), last);
      if (event.shiftKey) this.select((this.shifted ??= from), to);
      else this.shifted = null;
      this.go(to);
    } else if (event.key === "Enter") {
      this.pinned = this.at >= 0 && !this.pinned;
    } else if (event.key === "Escape") {
      Object.assign(this, { pinned: false, shifted: null });
      this.set("selection", []);
    } else return;
    event.preventDefault();
    if (this.at >= 0) this.show(this.at);
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
    const box = this.token(i).getBoundingClientRect(), frame = this.text.getBoundingClientRect();
    if (box.top < frame.top) this.text.scrollTop += box.top - frame.top - 20;
    else if (box.bottom > frame.bottom) this.text.scrollTop += box.bottom - frame.bottom + 20;
    this.show(i);
  }

  /** The next or previous token in which the text that is sought begins, and on round the end. */
  find(way) {
    const query = this.query.value.toLowerCase();
    if (!query) return;
    const texts = this.data.texts.map((text) => text.toLowerCase()), all = texts.join("");
    const hits = [];
    let i = -1, end = 0;
    for (let at = all.indexOf(query); at >= 0; at = all.indexOf(query, at + 1)) {
      while (end <= at) end += texts[++i].length;
      if (hits.at(-1) !== i) hits.push(i);
    }
    if (!hits.length) return this.card.replaceChildren(`not found: ${this.query.value}`);
    if (way > 0) this.go(hits.find((hit) => hit > this.at) ?? hits[0]);
    else this.go(hits.findLast((hit) => hit < this.at) ?? hits.at(-1));
  }
}

// ---------------------------------------------------------------- a page without Python

/** Puts the inspector in place of each static view with this key; `state` is what Python left. */
export function mount(key, state) {
  for (const el of document.querySelectorAll(`[data-btsft="${key}"]`)) {
    el.removeAttribute("data-btsft");
    el.replaceChildren();
    const listeners = {}, traits = { ...state, selection: [] };
    const example = () => state.examples[traits.index - state.first];
    const ofExample = {
      data: example,
      token_values: () => example().values,
      token_draws: () => example().draws[traits.unit][traits.epoch],
    };
    const model = {
      get: (name) => (name in ofExample ? ofExample[name]() : traits[name]),
      on: (name, listener) => (listeners[name] ??= []).push(listener),
      off: () => {},
      save_changes: () => {},
      set(name, content) {
        traits[name] = content;
        if (name === "index") traits.selection = [];
        const event = name === "index" ? "data" : name;
        (listeners[`change:${event}`] || []).forEach((listener) => listener());
      },
    };
    render({ model, el });
  }
}

export default { render };
