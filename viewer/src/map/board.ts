// One map on the screen: OpenSeadragon under it, the texts along two sides, the chosen pair across it.

import OpenSeadragon from "openseadragon";
import { h, replace, set } from "../dom";
import { Axis } from "./axis";
import { Grid } from "./grid";
import type { Piece } from "../tokens";
import { filled, mapSource, type Painted } from "./source";

/** Pixels a token at the deepest zoom; a map that is smaller than the window may be deeper. */
const DEEPEST = 40;
/** Pixels a token from which every token has its label. */
const NEAR = 13;
/** Milliseconds after which a map that is not yet drawn says so. */
const PATIENCE = 1000;
/** What of the window counts as its edge when the chosen pair is brought into sight. */
const EDGE = 0.05;

/** A point of the map in tokens. */
export interface Point {
  readonly row: number;
  readonly key: number;
}

/** The chosen row and column, null where there is none. */
export interface Pair {
  readonly row: number | null;
  readonly key: number | null;
}

/** Where the map stands: key and row in the middle, keys across. */
export interface Sight {
  readonly key: number;
  readonly row: number;
  readonly across: number;
}

type Named = (place: number) => { token: readonly Piece[]; position: number };

export interface Subject {
  readonly grid: Grid;
  readonly label: string;
  /** Where along each side what was written begins, after its prompt; null where all was there before. */
  readonly written: Pair;
  readonly rowName: Named;
  readonly keyName: Named;
}

export class MapBoard {
  readonly stage = h("div", { class: "map-stage", tabindex: 0, role: "application" });
  readonly #title = h("h3", { class: "map-title", hidden: true });
  readonly #top = new Axis("top");
  readonly #left = new Axis("left");
  readonly #complaint = h("p", { class: "map-complaint", role: "alert", hidden: true });
  readonly #waiting = h("p", { class: "map-waiting", role: "status" });
  readonly element = h("div", { class: "map-board" }, this.#title, h("div", { class: "map-corner", "aria-hidden": true }), this.#top.element, this.#left.element, this.stage, this.#waiting, this.#complaint);
  readonly #row = h("div", { class: "cross row" });
  readonly #column = h("div", { class: "cross column" });
  readonly #frame = h("div", { class: "map-frame" });
  readonly #viewer: OpenSeadragon.Viewer;
  #grid = new Grid(1, 1);
  #pair: Pair = { row: null, key: null };
  #drawn = "";
  #slow = 0;
  /** Whether anything has been drawn, so that places on the screen mean something. */
  #begun = false;
  onpin: (at: Point) => void = () => {};
  onpoint: (at: Point | null) => void = () => {};
  /** The map moves, or has come to rest. */
  onmove: (resting: boolean) => void = () => {};
  /** There is something to see. */
  onbegin: () => void = () => {};

  constructor(parent: HTMLElement) {
    parent.append(this.element);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#viewer = OpenSeadragon({
      element: this.stage, drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.18, navigatorAutoFade: false, animationTime: still ? 0 : 0.25, springStiffness: 12, blendTime: 0,
      imageSmoothingEnabled: false, minPixelRatio: 1, minZoomImageRatio: 0.7, visibilityRatio: 0.3, preserveViewport: true,
      maxZoomPixelRatio: DEEPEST, imageLoaderLimit: 8, maxImageCacheCount: 600, timeout: 600_000, crossOriginPolicy: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsPen: { clickToZoom: false },
    });
    // The page has keys of its own, and OpenSeadragon's would answer as well.
    this.#viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
    for (const part of this.stage.querySelectorAll("[tabindex]")) part.removeAttribute("tabindex");
    this.#viewer.addHandler("update-viewport", () => { this.#label(); this.onmove(false); });
    this.#viewer.addHandler("animation-finish", () => this.onmove(true));
    this.#viewer.addHandler("resize", () => this.#label());
    this.#viewer.addHandler("canvas-click", (event) => {
      const at = event.quick ? this.#pointAt(event.position) : null;
      if (at) this.onpin(at);
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return;
      const box = this.stage.getBoundingClientRect();
      this.onpoint(this.#pointAt(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top)));
    });
    this.stage.addEventListener("pointerleave", () => this.onpoint(null));
  }

  /** Another subject: another grid, other texts along the sides. */
  enter({ grid, label, written, rowName, keyName }: Subject): void {
    const viewer = this.#viewer;
    this.#grid = grid;
    this.#top.tokenOf = keyName;
    this.#left.tokenOf = rowName;
    set(this.stage, "aria-label", label);
    viewer.world.removeAll();
    viewer.clearOverlays();
    this.#drawn = "";
    this.#begun = false;
    viewer.addOverlay({ element: this.#frame, location: this.#rect(0, 0, grid.keys, grid.queries) });
    for (const line of [this.#row, this.#column]) viewer.addOverlay({ element: line, location: this.#rect(0, 0, 0, 0) });
    if (written.row !== null) viewer.addOverlay({ element: h("div", { class: "written row" }), location: this.#rect(0, written.row, grid.keys, grid.queries - written.row) });
    if (written.key !== null) viewer.addOverlay({ element: h("div", { class: "written column" }), location: this.#rect(written.key, 0, grid.keys - written.key, grid.queries) });
    viewer.world.addOnceHandler("add-item", () => {
      const side = Math.min(this.stage.clientWidth, this.stage.clientHeight) / Math.max(grid.keys, grid.queries, 1);
      // OpenSeadragon counts the deepest zoom in pixels a token; its types do not know that it may change.
      (viewer.viewport as unknown as { maxZoomPixelRatio: number }).maxZoomPixelRatio = Math.max(DEEPEST, 1.2 * side);
      this.#begun = true;
      this.whole(true);
      this.onbegin();
    });
  }

  /** Draws these maps over each other; the old picture stays until all of the new one has begun. */
  paint(maps: readonly Painted[], dark: boolean): void {
    const viewer = this.#viewer;
    const drawn = maps.map((map) => map.key).join(" ");
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    set(this.#complaint, "hidden", true);
    const old = Array.from({ length: viewer.world.getItemCount() }, (_, i) => viewer.world.getItemAt(i)!);
    let missing = maps.length;
    if (missing === 0) viewer.world.removeAll();
    for (const map of maps) {
      viewer.addTiledImage({
        tileSource: mapSource(map, (error) => this.#complain(error)), x: 0, y: 0, width: 1, compositeOperation: dark ? "lighter" : "multiply",
        success: (event) => {
          (event as unknown as { item: OpenSeadragon.TiledImage }).item.addHandler("fully-loaded-change", () => this.#say());
          missing -= 1;
          if (missing === 0) for (const item of old) viewer.world.removeItem(item);
          this.#say();
        },
      });
    }
    this.#say();
  }

  /** Whether what is in sight is still being computed. */
  #say(): void {
    const { world } = this.#viewer;
    const items = Array.from({ length: world.getItemCount() }, (_, i) => world.getItemAt(i)!);
    const busy = items.length === 0 || items.some((item) => !item.getFullyLoaded());
    set(this.stage, "aria-busy", busy);
    if (!busy) {
      clearTimeout(this.#slow);
      this.#slow = 0;
      replace(this.#waiting);
    } else if (this.#slow === 0) {
      this.#slow = window.setTimeout(() => replace(this.#waiting, this.#complaint.hidden && "computing what is in sight …"), PATIENCE);
    }
  }

  set title(words: string) {
    this.#title.hidden = words === "";
    replace(this.#title, words);
  }

  /** In place of a map: why there is none. */
  refuse(words: string): void {
    this.#viewer.world.removeAll();
    this.#drawn = "";
    this.#complain(new Error(words));
  }

  #complain(error: unknown): void {
    set(this.#complaint, "hidden", null);
    replace(this.#waiting);
    replace(this.#complaint, error instanceof Error ? error.message : String(error));
  }

  choose(pair: Pair): void {
    this.#pair = pair;
    const { row, key } = pair;
    this.#row.classList.toggle("none", row === null);
    this.#column.classList.toggle("none", key === null);
    if (row !== null) this.#viewer.updateOverlay(this.#row, this.#rect(0, row, this.#grid.keys, 1));
    if (key !== null) this.#viewer.updateOverlay(this.#column, this.#rect(key, 0, 1, this.#grid.queries));
    this.#label();
  }

  #label(): void {
    if (!this.#begun) return;
    const { viewport } = this.#viewer;
    const origin = viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const { scale } = this;
    this.#top.draw(origin.x, scale, this.#grid.keys, this.#pair.key);
    this.#left.draw(origin.y, scale, this.#grid.queries, this.#pair.row);
    this.stage.classList.toggle("near", scale >= NEAR);
    // A map of the map is of use only where there is more than can be seen.
    const [width, height] = [scale * this.#grid.keys, scale * this.#grid.queries];
    this.stage.classList.toggle("whole", width <= this.stage.clientWidth + 2 && height <= this.stage.clientHeight + 2);
  }

  /** Pixels a token. */
  get scale(): number {
    const { viewport } = this.#viewer;
    const [origin, one] = [0, 1].map((x) => viewport.pixelFromPoint(new OpenSeadragon.Point(x, 0), true).x) as [number, number];
    return (one - origin) / this.#width;
  }

  /** The level whose cells are about a pixel; 0 where nothing is drawn yet. */
  get level(): number {
    return this.#begun ? Math.min(this.#grid.top, Math.max(0, Math.ceil(-Math.log2(this.scale) - 1e-9))) : 0;
  }

  get begun(): boolean {
    return this.#begun;
  }

  /** Tokens across the square that OpenSeadragon knows, whose width it calls 1. */
  get #width(): number {
    return filled(this.#grid.keys, this.#grid);
  }

  #rect(key: number, row: number, keys: number, rows: number): OpenSeadragon.Rect {
    return new OpenSeadragon.Rect(key / this.#width, row / this.#width, keys / this.#width, rows / this.#width);
  }

  #pointAt(pixel: OpenSeadragon.Point): Point | null {
    if (!this.#begun) return null;
    const { x, y } = this.#viewer.viewport.pointFromPixel(pixel, true);
    const at = { row: Math.floor(y * this.#width), key: Math.floor(x * this.#width) };
    return at.row >= 0 && at.row < this.#grid.queries && at.key >= 0 && at.key < this.#grid.keys ? at : null;
  }

  /** Moves the chosen pair into sight. */
  reveal(): void {
    if (!this.#begun) return;
    const { viewport } = this.#viewer;
    const sight = viewport.getBounds(false);
    const centre = sight.getCenter();
    const y = this.#pair.row === null ? centre.y : (this.#pair.row + 0.5) / this.#width;
    const x = this.#pair.key === null ? centre.x : (this.#pair.key + 0.5) / this.#width;
    const inside = (value: number, from: number, size: number) => value >= from + EDGE * size && value <= from + size * (1 - EDGE);
    if (!inside(y, sight.y, sight.height) || !inside(x, sight.x, sight.width)) viewport.panTo(new OpenSeadragon.Point(x, y));
  }

  zoom(factor: number): void {
    if (!this.#begun) return;
    const { viewport } = this.#viewer;
    const { row, key } = this.#pair;
    const pinned = row !== null && key !== null ? this.#rect(key, row, 1, 1).getCenter() : undefined;
    viewport.zoomBy(factor, pinned && viewport.getBounds(true).containsPoint(pinned) ? pinned : undefined);
    viewport.applyConstraints();
  }

  /** The whole map into sight, the cells that fill it up left out. */
  whole(immediately: boolean): void {
    this.#viewer.viewport.fitBounds(this.#rect(0, 0, this.#grid.keys, this.#grid.queries), immediately);
  }

  get sight(): Sight {
    const { viewport } = this.#viewer;
    const { x, y } = viewport.getCenter(false);
    return { key: x * this.#width, row: y * this.#width, across: viewport.getBounds(false).width * this.#width };
  }

  set sight({ key, row, across }: Sight) {
    if (!this.#begun) return;
    const { viewport } = this.#viewer;
    viewport.zoomTo(this.#width / Math.max(across, 1), undefined, true);
    viewport.panTo(new OpenSeadragon.Point(key / this.#width, row / this.#width), true);
  }
}
