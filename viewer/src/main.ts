// Reads the page's document and data, and puts the picture into <div id="multihead">.

import { BrowserAddress, type Address } from "./address";
import { inflate, PageError } from "./data";
import { parseDocument, readPage, type Page } from "./document";
import { h, replace, set } from "./dom";
import { FrameAddress, Kernel, surroundingWidget } from "./frame";
import { fromHash, fromStart, toHash } from "./hash";
import { helpDialog, listenForKeys } from "./keys";
import { Ladder } from "./ladder";
import { Lede } from "./lede";
import { MapView } from "./map/mapview";
import { RememberingSupply, RemoteSupply, WorkerSupply, type Ask, type Supply } from "./map/supply";
import { Overview } from "./overview";
import { footer, header, pointed } from "./surround";
import { Panel } from "./panel";
import { PictureView } from "./picture/pictureview";
import { Relations } from "./relations";
import { askServer, Remote } from "./remote";
import { Search } from "./search";
import { focusOf, Store, type State } from "./state";
import { findPartners } from "./targets";
import { TextView } from "./textview";
import { Theme } from "./theme";
import { Toolbar } from "./toolbar";
import { Console } from "./console";

const HOVER_REST_MS = 90;

/** What makes a step that the back button takes back; where the map stands is kept, but is no step. */
const STEPS: readonly (keyof State)[] = ["layer", "heads", "text", "token", "key", "direction", "view", "scale", "opacity", "pooling", "sort"];

/** The address follows the choices, and the choices follow the address. */
function keepHash(store: Store, address: Address): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let step = false;
  let written = address.read();
  const write = () => {
    const now = toHash(store.page, store.state);
    if (now === written) return;
    address.write(now, step);
    written = now;
    step = false;
  };
  store.subscribe((state, before) => {
    if (!before) return;
    step ||= STEPS.some((name) => state[name] !== before[name]);
    clearTimeout(timer);
    timer = setTimeout(write, 300);
  });
  address.onchange = (hash) => {
    if (hash === written) return;
    written = hash;
    clearTimeout(timer);
    store.update({ key: null, at: "", sort: "", ...fromHash(store.page, hash), hover: null });
    clearTimeout(timer);
    step = false;
  };
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

function build(page: Page, root: HTMLElement, supply: () => Supply, ask: Ask | null, kernel: Kernel | null, address: Address): Store {
  const theme = new Theme(root);
  if (page.recordings) root.dataset["compared"] = "";
  const asked: Partial<State> = { ...fromStart(page, page.start), ...fromHash(page, address.read()), dark: theme.dark };
  const store = new Store(page, asked);
  // Before the views, which measure themselves.
  store.subscribe((state) => { root.dataset["view"] = state.view; });
  theme.onchange = (dark) => store.update({ dark });
  const notice = h("p", { class: "notice", role: "alert", hidden: true });
  if (ask) {
    store.remote = new Remote(page, ask);
    store.remote.onarrive = () => {
      set(notice, "hidden", true);
      store.update({ arrived: store.state.arrived + 1 });
    };
    store.remote.onfail = (error) => {
      replace(notice, error instanceof Error ? error.message : String(error));
      set(notice, "hidden", null);
    };
  }
  if (kernel) {
    kernel.onslow = (slow) => {
      if (slow) replace(notice, "The kernel does not answer yet: it is busy with another cell, or it has ended.");
      set(notice, "hidden", slow ? null : true);
    };
  }
  const lede = new Lede(store);
  const toolbar = new Toolbar(store);
  const ladder = new Ladder(store);
  const text = new TextView(store);
  const map = new MapView(store, supply);
  const picture = new PictureView(store);
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
  const main = h("main", {}, lede.element,
    h("section", { class: "stage", "aria-label": "One layer over the text" }, toolbar.element, ladder.element, text.element, map.element, picture.element),
    panel.element,
    h("section", { class: "atlas", "aria-label": "All layers and heads" }, h("h2", {}, "All layers and heads"), overview.sorting.element, overview.element, caption, relations.element));
  root.replaceChildren(
    header(page, search, () => theme.turn(), () => help.showModal()), notice,
    main,
    footer(page), help);
  listenForKeys({ store, search, help, turnTheme: () => theme.turn() });
  keepHash(store, address);
  store.start();
  return store;
}

function complain(root: HTMLElement, error: unknown): void {
  const known = error instanceof PageError;
  const text = known ? error.message : "The page's viewer failed while drawing.";
  root.replaceChildren(h("div", { role: "main" }, h("div", { class: "complaint", role: "alert" }, h("h1", {}, "This page cannot be shown"), h("p", {}, text),
    known ? null : h("p", { class: "quiet" }, error instanceof Error ? error.message : String(error)))));
}

const painted = (): Promise<void> => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));

async function open(api: Console): Promise<void> {
  const root = document.getElementById("multihead") ?? document.body.appendChild(h("div", { id: "multihead" }));
  try {
    const source = document.getElementById("multihead-document")?.textContent ?? "";
    const json = parseDocument(source);
    const block = document.getElementById("multihead-data");
    const buffer = block ? await inflate(block.textContent, block.dataset["coding"] ?? "") : new ArrayBuffer(0);
    // The text of the data is no longer needed, and it is the largest thing on the page.
    block?.replaceChildren();
    const page = readPage(json, buffer);
    const widget = surroundingWidget();
    if (page.source === "frame" && !widget) throw new PageError("This page asks a notebook for its numbers: open the notebook and run the cell.");
    const kernel = page.source === "frame" ? new Kernel(widget!) : null;
    const ask = page.source === "server" ? askServer(new URL(".", location.href).href) : (kernel?.ask ?? null);
    const address = widget ? new FrameAddress(widget) : new BrowserAddress();
    let made: Supply | null = null;
    // Workers are started when a map is wanted first.
    const supply = () => (made ??= new RememberingSupply(page, ask ? new RemoteSupply(page, ask) : new WorkerSupply(WORKER_SCRIPT, source, buffer)));
    api.document = json;
    api.supply = supply;
    api.store = build(page, root, supply, ask, kernel, address);
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
