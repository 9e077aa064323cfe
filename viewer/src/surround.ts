// What stands around the picture: the header, the footer, the line under the maps.

import type { Page } from "./document";
import { h, replace, tokenText } from "./dom";
import type { Search } from "./search";
import { piecesOf } from "./spelling";
import { focusOf, layerLabel, type Store } from "./state";
import type { Partner } from "./targets";
import { counted, formatWeight } from "./tokens";

export function header(page: Page, search: Search, turnTheme: () => void, openHelp: () => void): HTMLElement {
  return h("header", { class: "top" },
    h("span", { class: "mark-name" }, "multihead"),
    h("h1", { title: page.title }, h("bdi", {}, page.title)),
    search.element,
    h("button", { type: "button", class: "icon", "aria-label": "light or dark", title: "light or dark (t)", onclick: turnTheme }, "◐"),
    h("button", { type: "button", class: "icon", "aria-label": "help: keys", title: "keys (?)", onclick: openHelp }, "?"));
}

export function footer(page: Page): HTMLElement {
  const rows = Object.entries(page.provenance).flatMap(([key, value]) => [h("dt", {}, h("bdi", {}, key)), h("dd", {}, h("bdi", {}, value))]);
  const heads = page.layers.reduce((sum, layer) => sum + layer.heads.length, 0);
  const measured = page.source !== "page" || Number.isNaN(page.accuracy) ? "" : ` Each weight is within ${accuracy(page.accuracy)} of the recorded one.`;
  return h("footer", {},
    h("p", {}, h("strong", {}, "Attention is not explanation."), " A weight says how much of a key's value a head mixes in, not why the model answered as it did."),
    h("p", { class: "accuracy", "data-accuracy": page.accuracy }, `${counted(page.layers.length, "layer")}, ${counted(heads, "head")}; ${origin(page)}.${measured}`),
    rows.length > 0 && h("details", {}, h("summary", {}, "Provenance"), h("dl", {}, ...rows)));
}

/** Where the weights come from: a page may hold layers of both kinds. */
function origin(page: Page): string {
  if (page.source !== "page") return `the weights come from ${page.source === "server" ? "the server" : "the notebook's kernel"}`;
  const given = page.layers.filter((layer) => layer.weights).length;
  if (given === 0) return "the weights are computed in this page from q and k";
  return `the weights are ${given === page.layers.length ? "" : `computed in this page from q and k, or in ${given} layers `}those that were given`;
}

/** Rounded up to one digit, so that the statement stays true. */
export function accuracy(value: number): string {
  if (value === 0) return "0";
  const power = 10 ** Math.floor(Math.log10(value));
  return (Math.ceil(value / power - 1e-9) * power).toExponential(0).replace("e-", " × 10⁻").replace(/\d+$/, superscript).replace("e+", "e");
}

const superscript = (digits: string): string => [...digits].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("");

/** Under the maps: what the head under the pointer does with the chosen token. */
export function pointed(caption: HTMLElement, store: Store, partners: readonly Partner[], layer: number, head: number | null): void {
  if (head === null) {
    const order = store.state.sort === "" ? "Rows are layers, columns heads" : "Each map is one head, named layer.head";
    replace(caption, `${order}; a map has queries down and keys across.`);
    return;
  }
  const { page, state } = store;
  const focus = focusOf(state);
  const partner = partners.find((one) => one.layer === layer && one.head === head);
  const { heads, traits } = page.layers[layer]!;
  const label = traits?.label[heads.indexOf(head)];
  const name = `layer ${layerLabel(page, page.layers[layer]!)}, head ${head}${label ? ` (${label})` : ""}`;
  if (!focus || !partner) {
    replace(caption, name);
    return;
  }
  const own = tokenText(piecesOf(store, focus.text, focus.token));
  const other = tokenText(piecesOf(store, partner.text, partner.token));
  const [from, to] = focus.direction === "out" ? [own, other] : [other, own];
  replace(caption, `${name}: `, from, " → ", to, ` ${formatWeight(partner.weight, 2)}`);
}
