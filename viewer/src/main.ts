// Reads the page's document and data, and puts the picture into <div id="multihead">.

import { inflate, PageError } from "./data";
import { parseDocument, readPage, type Page } from "./document";
import { h } from "./dom";
import { fromHash, fromStart, toHash } from "./hash";
import { helpDialog, listenForKeys } from "./keys";
import { Ladder } from "./ladder";
import { Lede } from "./lede";
import { Overview } from "./overview";
import { footer, header, pointed } from "./surround";
import { Panel } from "./panel";
import { Relations } from "./relations";
import { Search } from "./search";
import { focusOf, Store, type State } from "./state";
import { findPartners } from "./targets";
import { TextView } from "./textview";
import { Theme } from "./theme";
import { Toolbar } from "./toolbar";
import { Console } from "./console";

const HOVER_REST_MS = 90;

function keepHash(store: Store): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let written = location.hash;
  store.subscribe((state, before) => {
    if (!before) return;
    clearTimeout(timer);
    // Some browsers refuse replaceState when called often, and in pages that have no address.
    timer = setTimeout(() => {
      try {
        written = toHash(store.page, state);
        history.replaceState(null, "", written);
      } catch { /* the page works without it */ }
    }, 300);
  });
  addEventListener("hashchange", () => { if (location.hash !== written) store.update(fromHash(store.page, location.hash)); });
}

/** Asks for every head's strongest partner when the focus comes to rest. */
function followFocus(store: Store, show: (partners: Parameters<Relations["show"]>[1]) => void): void {
  let cancel = () => {};
  let timer: ReturnType<typeof setTimeout> | undefined;
  let about = "";
  store.subscribe((state, before) => {
    const focus = focusOf(state);
    const now = JSON.stringify(focus);
    if (before && now === about) return;
    about = now;
    cancel();
    clearTimeout(timer);
    const find = () => { cancel = focus ? findPartners(store, focus, show) : () => {}; if (!focus) show([]); };
    if (!before || !state.hover && !before.hover) find();
    else timer = setTimeout(find, HOVER_REST_MS);
  });
}

function build(page: Page, root: HTMLElement): Store {
  const theme = new Theme(root);
  const asked: Partial<State> = { ...fromStart(page, page.start), ...fromHash(page, location.hash), dark: theme.dark };
  const store = new Store(page, asked);
  theme.onchange = (dark) => store.update({ dark });
  const lede = new Lede(store);
  const toolbar = new Toolbar(store);
  const ladder = new Ladder(store);
  const text = new TextView(store);
  const panel = new Panel(store);
  const overview = new Overview(store);
  const relations = new Relations(store);
  const search = new Search(store);
  const help = helpDialog();
  let partners: Parameters<Relations["show"]>[1] = [];
  followFocus(store, (found) => {
    partners = found;
    relations.show(focusOf(store.state), found);
    lede.showOthers(focusOf(store.state), found);
  });
  store.subscribe((state, before) => {
    if (before && (before.layer !== state.layer || before.heads !== state.heads)) lede.showOthers(focusOf(state), partners);
  });
  const caption = h("p", { class: "caption under", "aria-live": "off" });
  overview.onpoint = (layer, head) => {
    pointed(caption, store, partners, layer, head);
    ladder.ghost(head === null ? null : partners.filter((one) => one.layer === layer && one.head === head));
  };
  overview.onpoint(0, null);
  relations.onpoint = lede.onpoint = (those) => {
    overview.echo(those);
    ladder.ghost(those);
  };
  root.replaceChildren(
    header(page, search, () => theme.turn(), () => help.showModal()),
    h("main", {}, lede.element,
      h("section", { class: "stage", "aria-label": "One layer over the text" }, toolbar.element, ladder.element, text.element),
      panel.element,
      h("section", { class: "atlas", "aria-label": "All layers and heads" }, h("h2", {}, "All layers and heads"), overview.element, caption, relations.element)),
    footer(page), help);
  listenForKeys({ store, search, help, turnTheme: () => theme.turn() });
  keepHash(store);
  store.start();
  return store;
}

function complain(root: HTMLElement, error: unknown): void {
  const known = error instanceof PageError;
  const text = known ? error.message : "The page's viewer failed while drawing.";
  root.replaceChildren(h("div", { class: "complaint", role: "alert" }, h("h1", {}, "This page cannot be shown"), h("p", {}, text),
    known ? null : h("p", { class: "quiet" }, error instanceof Error ? error.message : String(error))));
}

const painted = (): Promise<void> => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));

async function open(api: Console): Promise<void> {
  const root = document.getElementById("multihead") ?? document.body.appendChild(h("div", { id: "multihead" }));
  try {
    const json = parseDocument(document.getElementById("multihead-document")?.textContent ?? "");
    const block = document.getElementById("multihead-data");
    const buffer = await inflate(block?.textContent ?? "");
    // The text of the data is no longer needed, and it is the largest thing on the page.
    block?.replaceChildren();
    const page = readPage(json, buffer);
    api.document = json;
    api.store = build(page, root);
  } catch (error) {
    complain(root, error);
    throw error;
  }
  await painted();
  performance.mark("multihead-first-picture");
}

const api = new Console();
(globalThis as unknown as { multihead: Console }).multihead = api;
api.ready = open(api);
// The reader sees the complaint in the page; whoever awaits `ready` still gets the error.
api.ready.catch(() => {});
