// One head's map, or several in their colours, like a street map: from the whole text down to a pair of tokens.

import OpenSeadragon from "openseadragon";
import { headColour, rgb } from "../colours";
import type { Layer } from "../document";
import { frame, h, replace, set, tokenText } from "../dom";
import { piecesOf } from "../spelling";
import type { State, Store } from "../state";
import { formatWeight } from "../tokens";
import { Axis } from "./axis";
import { Grid, type Pooling } from "./grid";
import { Legend } from "./legend";
import { linear, logarithmic, ranked, type Scale, type Shade } from "./shade";
import { filled, mapSource } from "./source";
import { RememberingSupply, type Supply } from "./supply";

/** Pixels a token at the deepest zoom; a map that is smaller than the window may be deeper. */
const DEEPEST = 40;
const PAN = 0.15;
const QUIET_MS = 250;
/** Heads that are read out under the pointer. */
const READ = 6;

/** A point of the map in tokens. */
interface Point {
  readonly row: number;
  readonly key: number;
}

export class MapView {
  readonly element: HTMLElement;
  readonly #stage = h("div", { class: "map-stage", tabindex: 0, role: "application" });
  readonly #top = new Axis("top");
  readonly #left = new Axis("left");
  readonly #readout = h("p", { class: "readout", "aria-live": "polite" });
  readonly #complaint = h("p", { class: "map-complaint", role: "alert", hidden: true });
  readonly #legend: Legend;
  readonly #row = h("div", { class: "cross row" });
  readonly #column = h("div", { class: "cross column" });
  readonly #frame = h("div", { class: "map-frame" });
  readonly #supply: () => Supply;
  #made: Supply | null = null;
  #viewer: OpenSeadragon.Viewer | null = null;
  #layer = -1;
  #grid = new Grid(1, 1);
  #rowOf = new Map<number, number>();
  #drawn = "";
  #asked = new AbortController();
  #quiet: ReturnType<typeof setTimeout> | undefined;
  #own = "";

  constructor(readonly store: Store, supply: () => Supply) {
    this.#supply = () => (this.#made ??= new RememberingSupply(supply()));
    this.#legend = new Legend(store, { zoom: (factor) => this.#zoom(factor), whole: () => this.#viewer?.viewport.goHome() });
    this.element = h("div", { class: "mapview", hidden: true }, this.#legend.element,
      h("div", { class: "map-board" }, h("div", { class: "map-corner", "aria-hidden": true }), this.#top.element, this.#left.element, this.#stage, this.#complaint),
      this.#readout);
    const point = frame((at: Point | null) => this.#read(at));
    this.#stage.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") point(this.#at(event)); });
    this.#stage.addEventListener("pointerleave", () => point(null));
    this.#stage.addEventListener("keydown", (event) => this.#key(event));
    store.subscribe((state, before) => this.#update(state, before));
  }

  #update(state: State, before: State | null): void {
    this.element.hidden = state.view !== "map";
    if (this.element.hidden) return;
    const viewer = (this.#viewer ??= this.#open());
    if (this.#layer !== state.layer) this.#enter(viewer, state);
    this.#paint(viewer, state);
    const elsewhere = !before || before.view !== state.view || before.at !== state.at;
    if (elsewhere && state.at !== "" && state.at !== this.#own) this.#go(state.at);
    const moved = before && (before.token !== state.token || before.key !== state.key || before.text !== state.text);
    this.#cross(state);
    if (moved && !state.hover) this.#reveal(state);
    this.#axes();
    if (!state.hover) this.#read(null);
  }

  #open(): OpenSeadragon.Viewer {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const viewer = OpenSeadragon({
      element: this.#stage, drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.18, navigatorAutoFade: false, animationTime: still ? 0 : 0.25, springStiffness: 12, blendTime: 0,
      imageSmoothingEnabled: false, minPixelRatio: 1, minZoomImageRatio: 0.7, visibilityRatio: 0.3, preserveViewport: true,
      maxZoomPixelRatio: DEEPEST, imageLoaderLimit: 8, maxImageCacheCount: 600, timeout: 600_000, crossOriginPolicy: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsPen: { clickToZoom: false },
    });
    // The page has keys of its own, and OpenSeadragon's would answer as well.
    viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
    for (const part of this.#stage.querySelectorAll("[tabindex]")) part.removeAttribute("tabindex");
    viewer.addHandler("update-viewport", () => this.#axes());
    viewer.addHandler("animation-finish", () => this.#settle());
    viewer.addHandler("resize", () => this.#axes());
    viewer.addHandler("canvas-click", (event) => {
      if (!event.quick) return;
      const at = this.#pointAt(event.position);
      if (at) this.#pin(at);
    });
    return viewer;
  }

  /** Another layer: another grid, other tokens along the sides. */
  #enter(viewer: OpenSeadragon.Viewer, state: State): void {
    const layer = this.store.layer;
    const before = this.#grid;
    this.#layer = state.layer;
    this.#grid = new Grid(layer.queryCount, layer.keyCount);
    this.#rowOf = new Map(layer.queries?.map((position, row) => [position, row]));
    this.#top.tokenOf = (key) => ({ token: piecesOf(this.store, layer.keyText, key), position: key });
    this.#left.tokenOf = (row) => {
      const position = layer.queries?.[row] ?? row;
      return { token: piecesOf(this.store, layer.queryText, position), position };
    };
    set(this.#stage, "aria-label", `map of ${layer.queryCount} queries by ${layer.keyCount} keys: arrows move the chosen pair, plus and minus zoom, 0 shows the whole`);
    const same = before.queries === this.#grid.queries && before.keys === this.#grid.keys;
    viewer.world.removeAll();
    viewer.clearOverlays();
    this.#drawn = "";
    const { width, height } = this.#size();
    viewer.addOverlay({ element: this.#frame, location: new OpenSeadragon.Rect(0, 0, layer.keyCount / width, layer.queryCount / width) });
    for (const line of [this.#row, this.#column]) viewer.addOverlay({ element: line, location: new OpenSeadragon.Rect(0, 0, 0, 0) });
    if (!same) viewer.world.addOnceHandler("add-item", () => {
      const side = Math.min(this.#stage.clientWidth / width, this.#stage.clientHeight / height);
      // OpenSeadragon counts the deepest zoom in pixels a token.
      (viewer.viewport as unknown as { maxZoomPixelRatio: number }).maxZoomPixelRatio = Math.max(DEEPEST, 1.2 * side);
      viewer.viewport.goHome(true);
      if (state.at !== "") this.#go(state.at);
    });
  }

  #size(): { width: number; height: number } {
    return { width: filled(this.#grid.keys, this.#grid), height: filled(this.#grid.queries, this.#grid) };
  }

  #paint(viewer: OpenSeadragon.Viewer, state: State): void {
    const { layer } = this.store;
    const drawn = [state.layer, state.heads.join("-"), state.pooling, state.scale, state.dark].join("/");
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    set(this.#complaint, "hidden", true);
    const old = Array.from({ length: viewer.world.getItemCount() }, (_, i) => viewer.world.getItemAt(i)!);
    let missing = state.heads.length;
    if (missing === 0) viewer.world.removeAll();
    for (const head of state.heads) {
      const place = layer.heads.indexOf(head);
      viewer.addTiledImage({
        tileSource: mapSource({
          supply: this.#supply(), layer: state.layer, head: place, grid: this.#grid, pooling: state.pooling,
          colour: rgb(headColour(place, state.dark).css), shade: this.#shade(state.scale, state.layer, place, state.pooling),
          key: [state.layer, head, state.pooling, state.scale, state.dark].join("/"), failed: (error) => this.#complain(error),
        }),
        x: 0, y: 0, width: 1,
        compositeOperation: state.dark ? "lighter" : "multiply",
        // The old picture stays until all of the new one has begun.
        success: () => { missing -= 1; if (missing === 0) for (const item of old) viewer.world.removeItem(item); },
      });
    }
  }

  async #shade(scale: Scale, layer: number, place: number, pooling: Pooling): Promise<Shade> {
    if (scale === "linear") return linear;
    if (scale === "log") return logarithmic;
    const whole = { level: this.#grid.top, y: 0, x: 0 };
    return ranked(await this.#supply().tile(layer, place, whole, pooling, new AbortController().signal));
  }

  #complain(error: unknown): void {
    set(this.#complaint, "hidden", null);
    replace(this.#complaint, error instanceof Error ? error.message : String(error));
  }

  /** Pixels a token now, and where token 0 stands. */
  #scale(viewer: OpenSeadragon.Viewer): { scale: number; left: number; top: number } {
    const origin = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const one = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
    return { scale: (one.x - origin.x) / this.#size().width, left: origin.x, top: origin.y };
  }

  #axes(): void {
    const viewer = this.#viewer;
    if (!viewer || viewer.world.getItemCount() === 0) return;
    const { scale, left, top } = this.#scale(viewer);
    const pair = this.#pair(this.store.state);
    this.#top.draw(left, scale, this.#grid.keys, pair.key);
    this.#left.draw(top, scale, this.#grid.queries, pair.row);
    this.#stage.classList.toggle("near", scale >= 13);
    this.#legend.say(this.#level(scale));
  }

  /** The level whose cells are about a pixel. */
  #level(scale: number): number {
    return Math.min(this.#grid.top, Math.max(0, Math.ceil(-Math.log2(scale) - 1e-9)));
  }

  #at(event: PointerEvent): Point | null {
    const box = this.#stage.getBoundingClientRect();
    return this.#pointAt(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
  }

  #pointAt(pixel: OpenSeadragon.Point): Point | null {
    if (!this.#viewer || this.#viewer.world.getItemCount() === 0) return null;
    const { x, y } = this.#viewer.viewport.pointFromPixel(pixel, true);
    const { width } = this.#size();
    const at = { row: Math.floor(y * width), key: Math.floor(x * width) };
    return at.row >= 0 && at.row < this.#grid.queries && at.key >= 0 && at.key < this.#grid.keys ? at : null;
  }

  /** What stands under the pointer, or the chosen pair: each head's number. */
  #read(at: Point | null): void {
    this.#asked.abort();
    this.#asked = new AbortController();
    const { signal } = this.#asked;
    const viewer = this.#viewer;
    const { state } = this.store;
    const chosen = this.#pair(state);
    const shown = at ?? (chosen.row !== null && chosen.key !== null ? { row: chosen.row, key: chosen.key } : null);
    if (!viewer || viewer.world.getItemCount() === 0 || !shown) {
      replace(this.#readout, h("span", { class: "quiet" }, "Point at a cell to read it; click to keep its row and column."));
      return;
    }
    const level = at ? this.#level(this.#scale(viewer).scale) : 0;
    const [row, column] = [shown.row >> level, shown.key >> level];
    const heads = state.heads.slice(0, READ);
    const numbers = heads.map(() => h("span", { class: "number" }, "…"));
    replace(this.#readout, ...this.#names(level, row, column), ...heads.flatMap((head, i) => {
      const swatch = h("i", { class: "swatch" });
      swatch.style.setProperty("--head", headColour(this.store.layer.heads.indexOf(head), state.dark).css);
      return [h("span", { class: "one", "data-head": head }, swatch, `head ${head} `, numbers[i]!)];
    }), state.heads.length > READ ? h("span", { class: "quiet" }, `and ${state.heads.length - READ} more`) : null);
    heads.forEach((head, i) => {
      const place = this.store.layer.heads.indexOf(head);
      this.#supply().cell(state.layer, place, level, row, column, state.pooling, signal).then((value) => {
        replace(numbers[i]!, formatWeight(value, level === 0 ? 4 : 5));
        set(numbers[i]!, "data-value", value.toPrecision(9));
      }).catch((error: unknown) => { if (!signal.aborted) replace(numbers[i]!, error instanceof Error ? error.message : String(error)); });
    });
  }

  #names(level: number, row: number, column: number): (Node | string)[] {
    const { layer, state } = this.store;
    const rows = this.#grid.queriesOf(level, row);
    const keys = this.#grid.keysOf(level, column);
    const position = (place: number) => layer.queries?.[place] ?? place;
    const cell = { "data-level": level, "data-row": row, "data-column": column };
    if (level === 0) {
      return [h("span", { class: "pair", ...cell }, tokenText(piecesOf(this.store, layer.queryText, position(row))), h("small", {}, ` ${position(row)}`), " → ",
        tokenText(piecesOf(this.store, layer.keyText, column)), h("small", {}, ` ${column}`))];
    }
    const what = state.pooling === "max" ? "largest weight" : "mean share";
    return [h("span", { class: "pair", ...cell }, `tokens ${position(rows.from)} to ${position(rows.to - 1)} → ${keys.from} to ${keys.to - 1}, ${what}`)];
  }

  #pin(at: Point): void {
    const { layer } = this.store;
    const token = layer.queries?.[at.row] ?? at.row;
    this.store.update({ text: layer.queryText, token, key: at.key, direction: "out", hover: null });
  }

  /** The chosen pair's row and column, null where none is chosen or recorded. */
  #pair(state: State): { row: number | null; key: number | null } {
    const { layer } = this.store;
    const asks = state.token !== null && state.text === layer.queryText && (state.direction === "out" || layer.queryText !== layer.keyText);
    const answers = state.token !== null && state.text === layer.keyText && !asks;
    const row = asks ? this.#rowOfToken(layer, state.token!) : null;
    return { row, key: answers ? state.token : state.key !== null && state.key < layer.keyCount ? state.key : null };
  }

  #rowOfToken(layer: Layer, token: number): number | null {
    if (!layer.queries) return token < layer.queryCount ? token : null;
    return this.#rowOf.get(token) ?? null;
  }

  #cross(state: State): void {
    const viewer = this.#viewer!;
    const { row, key } = this.#pair(state);
    const { width } = this.#size();
    for (const line of [this.#row, this.#column]) line.classList.toggle("none", (line === this.#row ? row : key) === null);
    if (row !== null) viewer.updateOverlay(this.#row, new OpenSeadragon.Rect(0, row / width, this.#grid.keys / width, 1 / width));
    if (key !== null) viewer.updateOverlay(this.#column, new OpenSeadragon.Rect(key / width, 0, 1 / width, this.#grid.queries / width));
  }

  /** Moves the chosen pair into sight. */
  #reveal(state: State): void {
    const viewer = this.#viewer!;
    if (viewer.world.getItemCount() === 0) return;
    const { row, key } = this.#pair(state);
    const { width } = this.#size();
    const sight = viewer.viewport.getBounds(false);
    const centre = sight.getCenter();
    const y = row === null ? centre.y : (row + 0.5) / width;
    const x = key === null ? centre.x : (key + 0.5) / width;
    const inside = (value: number, from: number, size: number) => value >= from + PAN * 0.3 * size && value <= from + size * (1 - PAN * 0.3);
    const seen = inside(y, sight.y, sight.height) && inside(x, sight.x, sight.width);
    if (!seen) viewer.viewport.panTo(new OpenSeadragon.Point(x, y));
  }

  #zoom(factor: number): void {
    const viewer = this.#viewer;
    if (!viewer || viewer.world.getItemCount() === 0) return;
    const { row, key } = this.#pair(this.store.state);
    const { width } = this.#size();
    const pinned = row !== null && key !== null ? new OpenSeadragon.Point((key + 0.5) / width, (row + 0.5) / width) : undefined;
    const about = pinned && viewer.viewport.getBounds(true).containsPoint(pinned) ? pinned : undefined;
    viewer.viewport.zoomBy(factor, about);
    viewer.viewport.applyConstraints();
  }

  #key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { state } = this.store;
    const { row, key } = this.#pair(state);
    const viewer = this.#viewer;
    if (!viewer || viewer.world.getItemCount() === 0) return;
    const step = (event.shiftKey ? 10 : 1) * 2 ** this.#level(this.#scale(viewer).scale);
    const move = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key];
    if (move) {
      const within = (value: number, count: number) => Math.min(Math.max(value, 0), count - 1);
      this.#pin({ row: within((row ?? 0) + move[0]!, this.#grid.queries), key: within((key ?? row ?? 0) + move[1]!, this.#grid.keys) });
    } else if (event.key === "+" || event.key === "=") this.#zoom(2);
    else if (event.key === "-") this.#zoom(0.5);
    else if (event.key === "0") viewer.viewport.goHome();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** After a movement: the address says where we are. */
  #settle(): void {
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(() => {
      const viewer = this.#viewer;
      if (!viewer || this.element.hidden || viewer.world.getItemCount() === 0) return;
      const { width } = this.#size();
      const { x, y } = viewer.viewport.getCenter(false);
      const across = viewer.viewport.getBounds(false).width * width;
      this.#own = [x * width, y * width, across].map((number) => Math.round(number * 10) / 10).join(",");
      this.store.update({ at: this.#own });
    }, QUIET_MS);
  }

  #go(at: string): void {
    const viewer = this.#viewer!;
    const numbers = at.split(",").map(Number);
    if (viewer.world.getItemCount() === 0 || numbers.length !== 3 || !numbers.every(Number.isFinite)) return;
    const [x, y, across] = numbers as [number, number, number];
    const { width } = this.#size();
    this.#own = at;
    viewer.viewport.zoomTo(width / Math.max(across, 1), undefined, true);
    viewer.viewport.panTo(new OpenSeadragon.Point(x / width, y / width), true);
  }
}
