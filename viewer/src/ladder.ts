// One layer's heads as lines: queries on the left, keys on the right, a colour a head, thicker where the weight is larger.

import { headColour, tint } from "./colours";
import { TokenColumn, type Decoration } from "./column";
import { describe } from "./document";
import { h, frame, replace, set } from "./dom";
import { focusOf, type Focus, type State, type Store } from "./state";
import { positionOf, spread, type Partner, type Spread } from "./targets";
import { formatWeight } from "./tokens";

const FAINTEST = 0.01;
const FAINTEST_ALL = 0.05;
const FAINTEST_SEVERAL = 0.02;
const REMEMBERED = 4000;
/** At most this many heads have their numbers over their cells. */
const NUMBERED = 5;
/** A text of at most this many tokens is fitted into the window where its rows stay readable. */
const FITTED = 40;
/** Pixels that every browser lays out in one element: Firefox takes 17.9 million. */
const TALLEST = 16e6;

interface Line {
  readonly from: number;
  readonly to: number;
  readonly weight: number;
  readonly place: number;
}

export class Ladder {
  readonly #query = new TokenColumn("query");
  readonly #key = new TokenColumn("key");
  readonly #canvas = h("canvas", { "aria-hidden": true });
  readonly #middle = h("div", { class: "lines" }, this.#canvas);
  readonly #above = h("button", { class: "beyond above", type: "button" });
  readonly #below = h("button", { class: "beyond below", type: "button" });
  readonly #titles = { query: h("div", { class: "title query" }), key: h("div", { class: "title key" }) };
  readonly element = h("div", { class: "ladder" }, this.#titles.query, h("div"), this.#titles.key,
    this.#query.element, this.#middle, h("div", { class: "with-beyond" }, this.#key.element, this.#above, this.#below));
  #spreads: Spread[] = [];
  #focus: Focus | null = null;
  #heaviest = -1;
  readonly #allRows = new Map<string, Spread>();
  #shown = "";
  #ghosts: readonly Partner[] = [];

  constructor(readonly store: Store) {
    this.#query.decorate = (token) => this.#decoration("query", token);
    this.#key.decorate = (token) => this.#decoration("key", token);
    const redraw = frame(() => this.#draw());
    this.#query.onscroll = redraw;
    this.#key.onscroll = redraw;
    new ResizeObserver(() => this.#refresh()).observe(this.#middle);
    addEventListener("resize", () => {
      this.#size();
      this.#refresh();
    });
    for (const column of [this.#query, this.#key]) this.#listen(column);
    for (const button of [this.#above, this.#below]) {
      button.addEventListener("click", () => { if (this.#heaviest >= 0) (this.#focus?.direction === "in" ? this.#query : this.#key).reveal(Number(button.dataset["token"])); });
    }
    this.#middle.addEventListener("wheel", (event) => {
      for (const column of [this.#query, this.#key]) column.element.scrollTop += event.deltaY;
      if (this.#query.element.scrollHeight > this.#query.element.clientHeight) event.preventDefault();
    }, { passive: false });
    store.subscribe((state, before) => this.#update(state, before));
  }

  /** Draws, dashed and grey, what heads of any layer do with the token in focus. */
  ghost(partners: readonly Partner[] | null): void {
    this.#ghosts = partners ?? [];
    if (!this.element.hidden) this.#draw();
  }

  #listen(column: TokenColumn): void {
    const at = (event: Event): Focus | null => {
      const row = event.target instanceof Element ? event.target.closest<HTMLElement>(".token") : null;
      if (!row) return null;
      const out = column.side === "query";
      const { queryText, keyText } = this.store.layer;
      return { text: out ? queryText : keyText, token: Number(row.dataset["token"]), direction: out ? "out" : "in" };
    };
    const hover = frame((focus: Focus | null) => this.store.update({ hover: focus }));
    column.element.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") hover(at(event)); });
    column.element.addEventListener("pointerleave", () => hover(null));
    column.element.addEventListener("click", (event) => {
      const focus = at(event);
      if (focus) this.store.update({ ...focus, hover: null });
    });
    column.element.addEventListener("keydown", (event) => this.#move(event, column));
  }

  #move(event: KeyboardEvent, column: TokenColumn): void {
    const out = column.side === "query";
    const { queryText, keyText } = this.store.layer;
    const text = out ? queryText : keyText;
    const { state } = this.store;
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const from = state.text === text && state.token !== null ? state.token : 0;
    this.store.update({ text, token: from + step, direction: out ? "out" : "in", hover: null });
    event.preventDefault();
    event.stopPropagation();
  }

  #update(state: State, before: State | null): void {
    this.element.hidden = state.view !== "lines";
    if (this.element.hidden) return;
    const { page, layer } = this.store;
    const texts = [page.texts[layer.queryText]!, page.texts[layer.keyText]!] as const;
    const crossed = layer.queryText !== layer.keyText;
    replace(this.#titles.query, crossed ? `${texts[0].name} looks` : "each token looks …");
    replace(this.#titles.key, crossed ? `at ${texts[1].name}` : "… at these", this.#numbers(state));
    if (!before || before.layer !== state.layer || before.view !== state.view || before.marks !== state.marks) this.#size();
    const focus = focusOf(state);
    this.#focus = focus;
    this.#spreads = focus ? state.heads.map((head) => spread(this.store, state.layer, head, focus)) : [];
    const shown = `${state.layer}`;
    if (shown !== this.#shown) this.#allRows.clear();
    this.#shown = shown;
    this.#findHeaviest();
    const pinned = !before || before.token !== state.token || before.text !== state.text || before.view !== state.view
      || before.layer !== state.layer || before.heads !== state.heads || before.direction !== state.direction;
    if (pinned && !state.hover && focus) this.#reveal(focus);
    this.#refresh();
  }

  /** Head numbers over the strips of cells, where there is room for them. */
  #numbers(state: State): Node | null {
    const count = state.heads.length;
    this.element.classList.toggle("few", count <= NUMBERED);
    this.element.style.setProperty("--heads", String(Math.max(count, 1)));
    if (count < 2 || count > NUMBERED || focusOf(state)?.direction === "in") return null;
    return h("span", { class: "strip", "aria-hidden": true }, ...state.heads.map((head) => h("b", {}, String(head))));
  }

  /** Fits a short text into the window below it; a long one scrolls. */
  #size(): void {
    if (this.element.hidden) return;
    const { page, layer } = this.store;
    const [query, key] = [page.texts[layer.queryText]!, page.texts[layer.keyText]!];
    const count = Math.max(query.tokens.length, key.tokens.length, 1);
    const top = this.#middle.getBoundingClientRect().top + scrollY;
    const room = Math.max(innerHeight - top - 14, 420);
    const [least, most] = matchMedia("(pointer: coarse)").matches ? [24, 30] : [18, 26];
    const row = count > FITTED ? Math.min(least + 4, Math.floor(TALLEST / count)) : Math.min(Math.max(Math.floor(room / count), least), most);
    this.element.style.setProperty("--row", `${row}px`);
    this.element.style.setProperty("--height", `${count > FITTED ? Math.min(room, count * row) : count * row}px`);
    this.#query.show(query, `queries: ${describe(query)}`, row, this.store.state.marks);
    this.#key.show(key, `keys: ${describe(key)}`, row, this.store.state.marks);
  }

  #findHeaviest(): void {
    let best = 0;
    this.#heaviest = -1;
    for (const one of this.#spreads) {
      one.weights?.forEach((weight, i) => {
        if (weight > best) {
          best = weight;
          this.#heaviest = positionOf(one, i);
        }
      });
    }
  }

  #reveal(focus: Focus): void {
    const [near, far] = focus.direction === "out" ? [this.#query, this.#key] : [this.#key, this.#query];
    near.reveal(focus.token);
    if (this.#heaviest >= 0) far.reveal(this.#heaviest);
  }

  #decoration(side: "query" | "key", token: number): Decoration {
    const { state } = this.store;
    const { layer } = this.store;
    const focus = this.#focus;
    const near = focus && (focus.direction === "out") === (side === "query");
    const unrecorded = side === "query" && this.store.weights[state.layer]!.recordedRow(token) === null;
    if (!focus || near) return { focused: !!focus && focus.token === token && (side === "query" ? layer.queryText : layer.keyText) === focus.text, muted: unrecorded, note: null, tint: "" };
    const cells = this.#spreads.map((one) => ({ place: one.place, head: one.head, weight: weightAt(one, token) }));
    const top = cells.reduce((a, b) => (b.weight > a.weight ? b : a), { place: 0, head: 0, weight: 0 });
    const ground = top.weight >= FAINTEST ? tint(headColour(top.place, state.dark).css, 0.1 + 0.9 * top.weight) : "";
    return { focused: false, muted: unrecorded, tint: ground, note: this.#note(cells) };
  }

  #note(cells: { place: number; head: number; weight: number }[]): Node | null {
    const { dark } = this.store.state;
    if (cells.length === 0) return null;
    if (cells.length === 1) {
      const { weight } = cells[0]!;
      return weight >= FAINTEST ? h("span", { class: weight >= 0.1 ? "much" : "little", "data-head": cells[0]!.head, "data-weight": weight.toFixed(6) }, formatWeight(weight, 2)) : null;
    }
    const strip = h("span", { class: "strip" });
    for (const { place, head, weight } of cells) {
      const dot = h("i", { title: `head ${head}: ${formatWeight(weight)}`, "data-head": head, "data-weight": weight.toFixed(6) });
      if (weight >= FAINTEST) dot.style.background = mix(headColour(place, dark).css, Math.sqrt(weight));
      strip.append(dot);
    }
    return strip;
  }

  #refresh(): void {
    if (this.element.hidden) return;
    this.#query.refresh();
    this.#key.refresh();
    this.#draw();
  }

  /** With a focus: its lines. Without: those of every query in sight. */
  #lines(): Line[] {
    const lines: Line[] = [];
    const focus = this.#focus;
    if (focus) {
      for (const one of this.#spreads) {
        one.weights?.forEach((weight, i) => {
          if (weight < (this.#spreads.length > 1 ? FAINTEST_SEVERAL : FAINTEST)) return;
          const other = positionOf(one, i);
          lines.push(focus.direction === "out"
            ? { from: focus.token, to: other, weight, place: one.place }
            : { from: other, to: focus.token, weight, place: one.place });
        });
      }
    } else {
      const { from, to } = this.#query.visible();
      for (let query = from; query < to; query++) this.#addRow(query, lines);
    }
    return lines.sort((a, b) => a.weight - b.weight);
  }

  #addRow(query: number, lines: Line[]): void {
    const { state } = this.store;
    for (const head of state.heads) {
      const key = `${head}/${query}`;
      let one = this.#allRows.get(key);
      if (!one) {
        if (this.#allRows.size > REMEMBERED) this.#allRows.clear();
        one = spread(this.store, state.layer, head, { text: this.store.layer.queryText, token: query, direction: "out" });
        this.#allRows.set(key, one);
      }
      one.weights?.forEach((weight, key) => { if (weight >= FAINTEST_ALL) lines.push({ from: query, to: key, weight, place: one.place }); });
    }
  }

  #draw(): void {
    const { clientWidth: width, clientHeight: height } = this.#middle;
    const scale = window.devicePixelRatio || 1;
    const canvas = this.#canvas;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    if (!context) return;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    for (const line of this.#lines()) this.#stroke(context, line, width);
    this.#strokeGhosts(context, width);
    this.#beyond();
  }

  #strokeGhosts(context: CanvasRenderingContext2D, width: number): void {
    const focus = this.#focus;
    if (!focus) return;
    const out = focus.direction === "out";
    const { queryText, keyText } = this.store.layer;
    const drawn = new Set<number>();
    for (const { text, token, weight } of this.#ghosts) {
      if (text !== (out ? keyText : queryText) || drawn.has(token)) continue;
      drawn.add(token);
      const y0 = this.#query.middle(out ? focus.token : token);
      const y1 = this.#key.middle(out ? token : focus.token);
      context.strokeStyle = this.store.state.dark ? "#e9e7e2" : "#1d2229";
      context.setLineDash([2, 3]);
      context.lineWidth = 1 + 4 * weight;
      curve(context, width, y0, y1);
    }
  }

  #stroke(context: CanvasRenderingContext2D, line: Line, width: number): void {
    const { state } = this.store;
    const y0 = this.#query.middle(line.from);
    const y1 = this.#key.middle(line.to);
    const shift = state.heads.length > 1 ? ((line.place % 5) - 2) * 1.5 : 0;
    const { css, dashed } = headColour(line.place, state.dark);
    context.strokeStyle = css;
    context.globalAlpha = (this.#focus ? 0.25 : 0.08) + (this.#focus ? 0.7 : 0.5) * line.weight;
    context.lineWidth = 0.75 + (this.#key.row * 0.55) * line.weight * (this.#focus ? 1 : 0.4);
    context.setLineDash(dashed ? [6, 4] : []);
    context.lineCap = "butt";
    curve(context, width, y0 + shift, y1 + shift);
    context.globalAlpha = 1;
  }

  /** Says how much weight lies out of sight above and below, so that a scrolled column hides nothing silently. */
  #beyond(): void {
    const far = this.#focus?.direction === "in" ? this.#query : this.#key;
    const { from, to } = far.visible();
    const hidden = { above: 0, below: 0 };
    const top = { above: -1, below: -1 };
    const best = { above: 0, below: 0 };
    for (const one of this.#spreads) {
      one.weights?.forEach((weight, i) => {
        const position = positionOf(one, i);
        if (position >= from && position < to) return;
        const where = position < from ? "above" : "below";
        hidden[where] += weight;
        if (weight > best[where]) {
          best[where] = weight;
          top[where] = position;
        }
      });
    }
    for (const [where, button, arrow] of [["above", this.#above, "↑"], ["below", this.#below, "↓"]] as const) {
      button.hidden = hidden[where] < 0.005 || this.#focus?.direction === "in";
      button.textContent = `${arrow} ${formatWeight(hidden[where], 2)} ${where}`;
      set(button, "data-token", top[where]);
    }
  }
}

function curve(context: CanvasRenderingContext2D, width: number, y0: number, y1: number): void {
  context.beginPath();
  context.moveTo(0, y0);
  context.bezierCurveTo(width * 0.5, y0, width * 0.5, y1, width, y1);
  context.stroke();
}

function weightAt(one: Spread, token: number): number {
  if (!one.weights) return 0;
  return one.weights[one.positions ? one.positions.indexOf(token) : token] ?? 0;
}

function mix(css: string, share: number): string {
  return `color-mix(in srgb, ${css} ${Math.round(Math.min(share, 1) * 90)}%, transparent)`;
}
