// What is shown: the text with its certainty, memory lengths, what is held, tables about states.

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Three significant digits: 0.52, 12.3, 1,230, 45k. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value) || value >= 1e7) return ">10M";
  if (value >= 1e6) return `${(value / 1e6).toPrecision(2)}M`;
  if (value >= 1e4) return `${Math.round(value / 1e3)}k`;
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

const percent = (share) => (share > 0 && share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`);

const visible = (text) => (text === "" ? "(no text)" : text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥"));

/** The text, token by token. */
export class TextView {
  constructor(box, details) {
    this.box = box;
    this.details = details;
    this.tokens = [];
    this.chosen = -1;
    box.addEventListener("pointerover", (event) => this.pointAt(event.target));
    box.addEventListener("click", (event) => this.pointAt(event.target));
    box.addEventListener("keydown", (event) => this.move(event));
  }

  /** Begin with a prompt. */
  start(prompt, turn) {
    this.box.replaceChildren();
    this.tokens = [];
    this.chosen = -1;
    this.prompt(prompt, turn);
  }

  /** Text that was given; of a conversation with who said it. */
  prompt(text, turn) {
    if (turn) this.box.append(element("span", { class: "turn" }, turn));
    if (text) this.box.append(element("span", { class: "prompt" }, text));
  }

  turn(who) {
    this.box.append(element("span", { class: "turn" }, who));
  }

  add(tokens) {
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    const part = document.createDocumentFragment();
    for (const token of tokens) {
      const span = element("span", { class: "token" }, token.text);
      if (token.logprob !== null) span.style.setProperty("--doubt", (1 - Math.exp(token.logprob)).toFixed(3));
      span.dataset.place = this.tokens.length;
      this.tokens.push({ ...token, span });
      part.append(span);
    }
    this.box.append(part);
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  pointAt(target) {
    const place = target?.dataset?.place;
    if (place !== undefined) this.choose(Number(place));
  }

  move(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (steps === undefined || !this.tokens.length) return;
    event.preventDefault();
    const from = this.chosen < 0 ? (steps < 0 ? this.tokens.length : -1) : this.chosen;
    this.choose(Math.max(0, Math.min(this.tokens.length - 1, from + steps)));
    this.tokens[this.chosen].span.scrollIntoView({ block: "nearest" });
  }

  choose(place) {
    if (place === this.chosen) return;
    this.tokens[this.chosen]?.span.classList.remove("chosen");
    this.chosen = place;
    const token = this.tokens[place];
    token.span.classList.add("chosen");
    const others = token.top.map((one) => `${visible(one.text)} ${percent(Math.exp(one.logprob))}`).join(", ");
    const own = token.logprob === null ? "" : `: ${percent(Math.exp(token.logprob))}`;
    this.details.textContent = `Token ${place + 1}, ${visible(token.text)}${own}${others ? `. Likeliest: ${others}` : ""}`;
  }
}

/** A table of layers by heads whose cells are shaded by `level` in [0, 1]; `absent` stands for layers that are null. */
function grid(caption, layers, text, level, absent = "no forget gates") {
  const heads = Math.max(1, ...layers.map((layer) => layer?.length ?? 0));
  const head = element("tr", {}, element("th", { scope: "col" }, "layer"));
  for (let n = 0; n < heads; n++) head.append(element("th", { scope: "col" }, `head ${n}`));
  const body = layers.map((layer, n) => {
    const row = element("tr", {}, element("th", { scope: "row" }, String(n)));
    if (layer === null) row.append(element("td", { colspan: heads }, absent));
    for (const value of layer ?? []) {
      const cell = element("td", { class: "cell" }, text(value));
      cell.style.setProperty("--level", level(value).toFixed(3));
      row.append(cell);
    }
    return row;
  });
  return element("table", {}, ...(caption ? [element("caption", {}, caption)] : []), element("thead", {}, head), element("tbody", {}, ...body));
}

const onLogScale = (value) => Math.max(0, Math.min(1, Math.log10(Math.max(value, 1)) / 5));

const LEISURE_MS = 120; // panels follow the text at this pace: drawing must not slow the writing down

/** Draws what it was given last, not more often than that. */
class Panel {
  constructor(box) {
    this.box = box;
    this.scheduled = false;
  }

  changed() {
    if (this.scheduled) return;
    this.scheduled = true;
    setTimeout(() => {
      this.scheduled = false;
      this.draw();
    }, LEISURE_MS);
  }
}

/** Memory lengths [[…heads] or null, … layers]. */
export class GatesView extends Panel {
  show(layers) {
    this.layers = layers;
    this.changed();
  }

  draw() {
    const values = this.layers.flatMap((layer) => layer ?? []);
    if (this.cells?.length !== values.length) {
      this.box.replaceChildren(grid("", this.layers, short, onLogScale));
      this.cells = this.box.querySelectorAll("td.cell");
      return;
    }
    values.forEach((value, n) => {
      const shown = short(value);
      if (this.cells[n].textContent === shown) return;
      this.cells[n].textContent = shown;
      this.cells[n].style.setProperty("--level", onLogScale(value).toFixed(3));
    });
  }
}

/** What each layer still holds of what it held at the end of the prompt: exp of the sum of ln f since, mean over heads. */
export class HeldView extends Panel {
  start() {
    this.sums = null;
    this.rows = null;
    this.count = 0;
    this.box.replaceChildren(element("p", { class: "faint" }, "Nothing was written yet."));
  }

  /** Memory lengths at one token; those at the last token of the prompt come first and do not count. */
  add(layers) {
    if (this.sums === null) this.sums = layers.map((layer) => layer && layer.map(() => 0));
    else {
      this.count += 1;
      layers.forEach((layer, n) => layer?.forEach((length, head) => (this.sums[n][head] -= 1 / length)));
    }
    this.changed();
  }

  draw() {
    if (this.sums === null) return;
    this.rows ??= this.begun();
    this.sums.forEach((layer, n) => {
      if (layer === null) return;
      const share = layer.reduce((sum, x) => sum + Math.exp(x), 0) / layer.length;
      const [meter, number] = this.rows.get(n);
      meter.value = share;
      number.textContent = percent(share);
    });
    this.after.textContent = `after ${this.count.toLocaleString("en")} more ${this.count === 1 ? "token" : "tokens"}`;
  }

  begun() {
    const rows = new Map();
    const list = element("div", { class: "held" });
    this.sums.forEach((layer, n) => {
      if (layer === null) return;
      const parts = [element("meter", { min: 0, max: 1, "aria-label": `layer ${n}` }), element("b")];
      rows.set(n, parts);
      list.append(element("span", {}, `layer ${n}`), ...parts);
    });
    this.after = element("p", { class: "faint" });
    this.box.replaceChildren(list, this.after);
    return rows;
  }
}

/** What a state holds. */
export function memoryTable(state, found) {
  const ranked = found.layers.filter((layer) => layer.heads);
  const size = ranked.length ? Math.min(...ranked[0].shape.slice(-2)) : 1;
  const text = (head) => (head.effective_rank === undefined ? short(head.norm) : `${short(head.norm)} · ${head.effective_rank.toFixed(1)}`);
  const cells = found.layers.map((layer) => layer.heads ?? [{ norm: layer.norm }]);
  const caption = `${state.name}, ${found.tokens.toLocaleString("en")} tokens. Norm${ranked.length ? ` · effective rank (of ${size})` : ""}`;
  return grid(caption, cells, text, (head) => (head.effective_rank ?? 0) / size);
}

/** How far two states are apart. */
export function compareTable(a, b, found) {
  const cells = Array(1 + Math.max(0, ...found.layers.map((one) => one.layer))).fill(null);
  for (const { layer, heads } of found.layers) cells[layer] = heads;
  const caption = `Distance of ${a} and ${b}: 0 where they are equal, 1 where they have nothing in common`;
  return grid(caption, cells, (head) => head.distance.toFixed(2), (head) => head.distance / Math.SQRT2, "keys and values, which are not compared");
}
