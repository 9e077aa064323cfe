// One token in numbers: what it looks at, and what looks at it, for every chosen head.

import { headColour } from "./colours";
import { h, replace, tokenText } from "./dom";
import { piecesOf } from "./spelling";
import { focusOf, type Direction, type Focus, type State, type Store } from "./state";
import { positionOf, reads, spread, type Spread } from "./targets";
import { formatWeight } from "./tokens";

const SMALLEST = 0.0005;

export class Panel {
  readonly element = h("section", { class: "panel", "aria-label": "The chosen token in numbers" });
  /** Entries asked for with "+12 more", by list; forgotten when another token is chosen. */
  readonly #asked = new Map<string, number>();
  #about = "";

  constructor(readonly store: Store) {
    store.subscribe((state) => this.#update(state));
    this.element.addEventListener("click", (event) => this.#click(event));
  }

  #update(state: State): void {
    const focus = focusOf(state);
    const about = JSON.stringify([focus?.text, focus?.token, state.layer, state.heads]);
    if (about !== this.#about) this.#asked.clear();
    this.#about = about;
    if (!focus) {
      replace(this.element, h("h2", {}, "One token in numbers"), h("p", { class: "quiet" }, "Choose a token to see what it looks at and what looks at it."));
      return;
    }
    const { layer, page } = this.store;
    const texts = page.texts.length > 1 ? `${page.texts[focus.text]!.name}, ` : "";
    replace(this.element,
      h("h2", { "data-text": focus.text, "data-token": focus.token }, tokenText(piecesOf(this.store, focus.text, focus.token)), " ", h("small", {}, `${texts}token ${focus.token}`)),
      ...(["out", "in"] as const).map((direction) => this.#part(state, { ...focus, direction })),
      reads(layer, focus) ? null : h("p", { class: "quiet" }, ""));
  }

  #part(state: State, focus: Focus): HTMLElement | null {
    const { layer } = this.store;
    if (!reads(layer, focus)) return null;
    const out = focus.direction === "out";
    const part = h("div", { class: "part", "data-direction": focus.direction }, h("h3", {}, out ? "looks at" : "is looked at by"));
    if (state.heads.length === 0) part.append(h("p", { class: "quiet" }, "No head is chosen."));
    if (!out && layer.queries) part.append(h("p", { class: "quiet" }, `among the ${layer.queries.length} recorded queries`));
    const first = state.heads.length === 1 ? 9 : state.heads.length <= 3 ? 5 : 3;
    for (const head of state.heads) part.append(this.#list(spread(this.store, state.layer, head, focus), focus.direction, first));
    return part;
  }

  #list(one: Spread, direction: Direction, first: number): HTMLElement {
    const { layer, state } = this.store;
    const { css } = headColour(one.place, state.dark);
    const list = h("div", { class: "list", "data-layer": layer.index, "data-head": one.head });
    list.style.setProperty("--head", css);
    const heading = h("h4", {}, h("i", { class: "swatch" }), `head ${one.head}`);
    if (one.entropy !== null) heading.append(h("small", { title: "0 when one key gets everything" }, `entropy ${one.entropy.toFixed(2)} nats`));
    list.append(heading);
    if (one.pending) list.append(h("p", { class: "quiet" }, "…"));
    else if (!one.weights) list.append(h("p", { class: "quiet" }, "This query was not recorded."));
    else if (one.blind) list.append(h("p", { class: "quiet", "data-blind": true }, "It sees no key: every weight is 0."));
    else list.append(this.#entries(one, direction, first));
    return list;
  }

  #entries(one: Spread, direction: Direction, first: number): HTMLElement {
    const { layer } = this.store;
    const weights = one.weights!;
    const text = direction === "out" ? layer.keyText : layer.queryText;
    const key = `${direction}/${one.head}`;
    const limit = this.#asked.get(key) ?? first;
    const order = largest(weights, limit);
    const rows = order.map((i) => {
      const token = positionOf(one, i);
      return entry(h("span", { class: "what" }, tokenText(piecesOf(this.store, text, token)), " ", h("small", {}, String(token))), weights[i]!,
        { "data-text": text, "data-token": token, "data-head": one.head, "data-layer": layer.index });
    });
    if (one.sink !== null) rows.push(entry(h("span", { class: "what sinkname" }, "sink"), one.sink, { "data-sink": true, "data-head": one.head, "data-layer": layer.index }));
    const list = h("ol", {}, ...rows);
    const rest = weights.length - order.length;
    if (rest > 0) {
      const shown = order.reduce((sum, i) => sum + weights[i]!, 0);
      const together = Math.max(0, weights.reduce((sum, weight) => sum + weight, 0) - shown);
      list.append(h("li", { class: "rest" }, h("button", {
        type: "button", "data-more": key, "data-limit": limit + 25, "data-rest": rest, "data-together": together.toFixed(6),
      }, `+${rest} more, together ${formatWeight(together)}`)));
    }
    return list;
  }

  #click(event: MouseEvent): void {
    const target = event.target instanceof Element ? event.target : null;
    const more = target?.closest<HTMLElement>("[data-more]");
    if (more) {
      const key = more.dataset["more"]!;
      this.#asked.set(key, Number(more.dataset["limit"]));
      this.#update(this.store.state);
      this.element.querySelector<HTMLElement>(`[data-more="${key}"]`)?.focus();
      return;
    }
    const row = target?.closest<HTMLElement>("li[data-token] button")?.parentElement;
    if (row) this.store.update({ text: Number(row.dataset["text"]), token: Number(row.dataset["token"]), hover: null });
  }
}

function entry(what: HTMLElement, weight: number, data: Record<string, string | number | boolean>): HTMLElement {
  const bar = h("i", { class: "bar", "aria-hidden": true });
  bar.style.width = `${Math.min(100, 100 * weight).toFixed(2)}%`;
  const inside = [what, h("span", { class: "track" }, bar), h("span", { class: "number" }, formatWeight(weight))];
  return h("li", { ...data, "data-weight": weight.toFixed(6) }, "data-token" in data ? h("button", { type: "button" }, ...inside) : h("div", {}, ...inside));
}

/** Places of the largest weights, largest first; never sorts a long row in full. */
export function largest(weights: Float64Array, limit: number): number[] {
  const kept: number[] = [];
  for (let i = 0; i < weights.length; i++) {
    const weight = weights[i]!;
    if (weight < SMALLEST) continue;
    if (kept.length === limit && weight <= weights[kept[limit - 1]!]!) continue;
    let at = kept.length;
    while (at > 0 && weights[kept[at - 1]!]! < weight) at--;
    kept.splice(at, 0, i);
    if (kept.length > limit) kept.pop();
  }
  return kept;
}
