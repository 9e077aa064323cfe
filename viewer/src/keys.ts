// Keys that work anywhere on the page, and the page that explains them.

import { h } from "./dom";
import type { Search } from "./search";
import { hasPicture, VIEWS, type Store } from "./state";

const KEYS: readonly (readonly [string, string])[] = [
  ["← →", "the token before, the token after (Shift: ten at a time)"],
  ["Home End", "the first token, the last"],
  ["↑ ↓", "in a column of tokens: one up, one down"],
  ["j k", "the next layer, the layer before"],
  ["h l", "the head before, the next head"],
  ["0 … 9", "head 0 … 9 on or off (Shift: 10 … 19)"],
  ["a", "all heads, and back"],
  ["d", "turn round: what it looks at, what looks at it"],
  ["v", "lines, text or map; the picture, where there is one"],
  ["m", "tokens as text, or with their tokenizer's marks"],
  ["/", "find a token by its spelling or position"],
  ["t", "light or dark"],
  ["arrows", "on the maps: choose layer and head (Shift adds, Space switches one)"],
  ["← ↑ → ↓", "on a picture: from patch to patch (Shift: five at a time)"],
  ["+ - 0", "on the map: nearer, farther, the whole; arrows move the chosen pair"],
  ["Esc", "close; let go of the token"],
  ["?", "this help"],
];

export function helpDialog(): HTMLDialogElement {
  const close = h("button", { type: "button", class: "close", "aria-label": "close", onclick: () => dialog.close() }, "✕");
  const dialog = h("dialog", { class: "help", "aria-label": "Keys" }, h("header", {}, h("h2", {}, "Keys"), close),
    h("dl", {}, ...KEYS.flatMap(([key, text]) => [h("dt", {}, ...key.split(" ").map((part) => (part === "…" ? part : h("kbd", {}, part)))), h("dd", {}, text)])),
    h("p", { class: "quiet" }, "With the mouse: point at a token to look, click to keep it; click a map to choose a head, Shift-click to add one."));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  return dialog;
}

interface Actions {
  readonly store: Store;
  readonly search: Search;
  readonly help: HTMLDialogElement;
  readonly turnTheme: () => void;
}

function moveToken(store: Store, by: number): void {
  const { token, text } = store.state;
  const length = store.page.texts[text]!.tokens.length;
  store.update({ token: token === null ? (by > 0 ? 0 : length - 1) : token + by, hover: null });
}

function nextView(store: Store): void {
  const offered = VIEWS.filter((view) => view !== "picture" || hasPicture(store.page, store.layer));
  store.update({ view: offered[(offered.indexOf(store.state.view) + 1) % offered.length]! });
}

function moveHead(store: Store, by: number): void {
  const { heads } = store.layer;
  const place = heads.indexOf(store.state.heads[by > 0 ? store.state.heads.length - 1 : 0] ?? -1);
  store.update({ heads: [heads[Math.min(Math.max(place + by, 0), heads.length - 1)]!] });
}

function moveLayer(store: Store, by: number): void {
  const layer = Math.min(Math.max(store.state.layer + by, 0), store.page.layers.length - 1);
  store.update({ layer });
}

function act(event: KeyboardEvent, { store, search, help, turnTheme }: Actions): boolean {
  const step = event.shiftKey ? 10 : 1;
  const acts: Record<string, () => void> = {
    ArrowLeft: () => moveToken(store, -step),
    ArrowRight: () => moveToken(store, step),
    Home: () => moveToken(store, -Infinity),
    End: () => moveToken(store, Infinity),
    j: () => moveLayer(store, 1),
    k: () => moveLayer(store, -1),
    h: () => moveHead(store, -1),
    l: () => moveHead(store, 1),
    a: () => store.toggleAll(),
    d: () => store.update({ direction: store.state.direction === "out" ? "in" : "out" }),
    v: () => nextView(store),
    m: () => store.update({ marks: !store.state.marks }),
    t: turnTheme,
    "/": () => search.input.focus(),
    "?": () => help.showModal(),
    Escape: () => store.update({ hover: null, token: null }),
  };
  const action = acts[event.key];
  if (action) {
    action();
    return true;
  }
  const head = headOf(event);
  if (head !== null) store.toggleHead(head);
  return head !== null;
}

/** Shift and a digit writes something else on each keyboard; a plain digit needs Shift on some. */
function headOf(event: KeyboardEvent): number | null {
  if (/^\d$/.test(event.key)) return Number(event.key);
  const digit = /^Digit(\d)$/.exec(event.code);
  return digit ? Number(digit[1]) + (event.shiftKey ? 10 : 0) : null;
}

export function listenForKeys(actions: Actions): void {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || actions.help.open) return;
    const target = event.target instanceof Element ? event.target : null;
    if (target?.closest("input, textarea, select, [contenteditable]")) return;
    if (act(event, actions)) event.preventDefault();
  });
}
