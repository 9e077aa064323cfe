// Where every head of every layer sends the chosen token: heads gathered by the token they favour.

import { headColour } from "./colours";
import { h, replace, tokenText } from "./dom";
import { piecesOf } from "./spelling";
import { layerLabel, tokenAt, type Focus, type State, type Store } from "./state";
import type { Partner } from "./targets";
import { counted, formatWeight, isSpecial } from "./tokens";

const FIRST = 8;
const FIRST_SPECIAL = 2;
const CHIPS = 12;

interface Group {
  readonly text: number;
  readonly token: number;
  readonly partners: Partner[];
  readonly special: boolean;
}

export function groupByToken(store: Store, partners: readonly Partner[]): Group[] {
  const groups = new Map<string, Group>();
  for (const partner of partners) {
    const key = `${partner.text}/${partner.token}`;
    const special = isSpecial(tokenAt(store.page, partner.text, partner.token));
    if (!groups.has(key)) groups.set(key, { text: partner.text, token: partner.token, partners: [], special });
    groups.get(key)!.partners.push(partner);
  }
  // Partners come strongest first; words before [CLS] and the like, where many heads rest.
  return [...groups.values()].sort((a, b) => Number(a.special) - Number(b.special) || b.partners[0]!.weight - a.partners[0]!.weight);
}

export class Relations {
  readonly element = h("div", { class: "relations" });
  onpoint: (partners: readonly Partner[] | null) => void = () => {};
  #all = false;
  #partners: readonly Partner[] = [];
  #focus: Focus | null = null;
  #groups: Group[] = [];

  constructor(readonly store: Store) {
    this.element.addEventListener("click", (event) => this.#click(event));
    this.element.addEventListener("pointerover", (event) => this.#point(event.target));
    this.element.addEventListener("focusin", (event) => this.#point(event.target));
    this.element.addEventListener("pointerleave", () => this.onpoint(null));
    this.element.addEventListener("focusout", () => this.onpoint(null));
    store.subscribe((state, before) => {
      if (before && (before.layer !== state.layer || before.heads !== state.heads || before.dark !== state.dark || before.marks !== state.marks)) this.#draw();
    });
  }

  show(focus: Focus | null, partners: readonly Partner[]): void {
    this.#focus = focus;
    this.#partners = partners;
    this.#groups = groupByToken(this.store, partners);
    this.#draw();
  }

  #draw(): void {
    const focus = this.#focus;
    if (!focus || this.#partners.length === 0) {
      replace(this.element);
      return;
    }
    const { state } = this.store;
    const token = tokenText(piecesOf(this.store, focus.text, focus.token));
    const count = this.#partners.length;
    const heads = counted(count, "head");
    const title = focus.direction === "out" ? h("h2", {}, `Where ${heads} ${count === 1 ? "sends" : "send"} `, token) : h("h2", {}, "Who looks at ", token, ` in ${heads}`);
    const words = this.#groups.filter((group) => !group.special);
    const specials = this.#groups.filter((group) => group.special);
    const shown = this.#all ? this.#groups : [...words.slice(0, FIRST), ...specials.slice(0, FIRST_SPECIAL)];
    const rest = this.#groups.length - shown.length;
    replace(this.element, title,
      h("p", { class: "quiet" }, `Each chip is one head, named layer.head, beside ${focus.direction === "out" ? "the token it favours most" : "the token that favours it most"}; the stronger, the fuller its colour.`),
      h("ol", {}, ...shown.map((group) => this.#row(group, state))),
      rest > 0 && h("button", { type: "button", class: "more", "data-all": true }, `+${counted(rest, "more token")}`));
  }

  #row(group: Group, state: State): HTMLElement {
    const row = h("li", { "data-text": group.text, "data-token": group.token });
    const { texts } = this.store.page;
    const limit = this.#all ? Infinity : CHIPS;
    const chips = group.partners.slice(0, limit).map((partner) => this.#chip(partner, state));
    const rest = group.partners.length - chips.length;
    row.append(h("span", { class: "what" }, tokenText(piecesOf(this.store, group.text, group.token)), " ", h("small", {}, texts.length > 1 ? `${texts[group.text]!.name} ${group.token}` : String(group.token))),
      h("span", { class: "number" }, formatWeight(group.partners[0]!.weight, 2)),
      h("span", { class: "chips" }, ...chips, rest > 0 && h("span", { class: "quiet" }, `+${counted(rest, "head")}`)));
    return row;
  }

  #chip(partner: Partner, state: State): HTMLElement {
    const layer = this.store.page.layers[partner.layer]!;
    const chosen = partner.layer === state.layer && state.heads.includes(partner.head);
    const chip = h("button", {
      type: "button", class: chosen ? "chip chosen" : "chip", "data-layer": layer.index, "data-layer-position": partner.layer, "data-head": partner.head,
      "data-token": partner.token, "data-weight": partner.weight.toFixed(6), "aria-pressed": chosen,
      title: `layer ${layerLabel(this.store.page, layer)}, head ${partner.head}: ${formatWeight(partner.weight)}`,
      "aria-label": `${layer.index}.${partner.head}: layer ${layerLabel(this.store.page, layer)} head ${partner.head}, weight ${formatWeight(partner.weight, 2)}`,
    }, `${layer.index}.${partner.head}`);
    chip.style.setProperty("--share", `${Math.round(6 + 44 * partner.weight)}%`);
    if (chosen) chip.style.setProperty("--head", headColour(partner.place, state.dark).css);
    return chip;
  }

  #click(event: MouseEvent): void {
    const target = event.target instanceof Element ? event.target : null;
    const chip = target?.closest<HTMLElement>(".chip");
    if (chip) {
      const { layerPosition, head } = chip.dataset;
      const toggle = event.shiftKey || event.ctrlKey || event.metaKey;
      const { state } = this.store;
      const same = Number(layerPosition) === state.layer;
      this.store.update({ layer: Number(layerPosition), heads: toggle && same ? [...state.heads, Number(head)] : [Number(head)], hover: null });
      this.element.querySelector<HTMLElement>(`.chip[data-layer-position="${layerPosition}"][data-head="${head}"]`)?.focus();
    } else if (target?.closest("[data-all]")) {
      this.#all = true;
      this.#draw();
    }
  }

  #point(target: EventTarget | null): void {
    const element = target instanceof Element ? target : null;
    const chip = element?.closest<HTMLElement>(".chip");
    const row = element?.closest<HTMLElement>("li");
    if (chip) this.onpoint(this.#partners.filter((one) => one.layer === Number(chip.dataset["layerPosition"]) && one.head === Number(chip.dataset["head"])));
    else if (row) this.onpoint(this.#groups.find((group) => group.text === Number(row.dataset["text"]) && group.token === Number(row.dataset["token"]))?.partners ?? null);
    else this.onpoint(null);
  }
}
