// One head's map, or several in their colours, like a street map: from the whole text down to a pair of tokens.
// Two recordings stand side by side, with their difference, and move together.

import { headColour, rgb } from "../colours";
import { matchOf, type Match } from "../compare";
import type { Layer } from "../document";
import { frame, h, replace, set, tokenText } from "../dom";
import { piecesOf } from "../spelling";
import type { State, Store } from "../state";
import { formatWeight } from "../tokens";
import { MapBoard, type Pair, type Point, type Subject } from "./board";
import { Grid, type Pooling } from "./grid";
import { Legend } from "./legend";
import { differencePainting, headPainting, type Look } from "./paintings";
import { linear, logarithmic, ranked, type Scale, type Shade } from "./shade";
import type { Painted } from "./source";
import type { Supply } from "./supply";

const QUIET_MS = 250;
/** Heads that are read out under the pointer. */
const READ = 6;
export class MapView {
  readonly element: HTMLElement;
  readonly #boards = h("div", { class: "map-boards" });
  readonly #readout = h("p", { class: "readout", "aria-live": "polite" });
  readonly #legend: Legend;
  readonly #supply: () => Supply;
  #shown: MapBoard[] = [];
  #layer = -1;
  #match: Match | null = null;
  #grid = new Grid(1, 1);
  #rowOf = new Map<number, number>();
  #asked = new AbortController();
  #quiet: ReturnType<typeof setTimeout> | undefined;
  #own = "";
  #following = false;

  constructor(readonly store: Store, supply: () => Supply) {
    this.#supply = supply;
    this.#legend = new Legend(store, { zoom: (factor) => this.#first?.zoom(factor), whole: () => this.#first?.whole(false) });
    this.element = h("div", { class: "mapview", hidden: true }, this.#legend.element, this.#boards, this.#readout);
    store.subscribe((state, before) => this.#update(state, before));
  }

  get #first(): MapBoard | null {
    return this.#shown[0] ?? null;
  }

  #update(state: State, before: State | null): void {
    this.element.hidden = state.view !== "map";
    if (this.element.hidden) return;
    if (this.#shown.length === 0) this.#build();
    if (this.#layer !== state.layer) this.#enter(state);
    this.#paint(state);
    const elsewhere = !before || before.view !== state.view || before.at !== state.at;
    if (elsewhere && state.at !== "" && state.at !== this.#own) this.#go(state.at);
    const pair = this.#pair(state);
    for (const board of this.#shown) board.choose(pair);
    const moved = before && (before.token !== state.token || before.key !== state.key || before.text !== state.text);
    if (moved && !state.hover) this.#first!.reveal();
    if (!state.hover) this.#read(null);
  }

  #build(): void {
    const point = frame((at: Point | null) => this.#read(at));
    const count = this.store.page.recordings ? 3 : 1;
    this.#shown = Array.from({ length: count }, () => new MapBoard(this.#boards));
    this.#boards.dataset["count"] = String(count);
    for (const board of this.#shown) {
      board.onpin = (at) => this.#pin(at);
      board.onpoint = point;
      board.onmove = (resting) => this.#moved(board, resting);
      board.stage.addEventListener("keydown", (event) => this.#key(event, board));
    }
    this.#first!.onbegin = () => {
      if (this.store.state.at !== "") this.#go(this.store.state.at);
      this.#legend.say(this.#first!.level);
    };
  }

  /** Another layer: another grid, other tokens along the sides. */
  #enter(state: State): void {
    const { page, layer } = this.store;
    this.#layer = state.layer;
    this.#grid = new Grid(layer.queryCount, layer.keyCount);
    this.#rowOf = new Map(layer.queries?.map((position, row) => [position, row]));
    this.#match = matchOf(page, layer);
    const [board, other, difference] = this.#shown;
    if (!other || !difference) {
      board!.enter(this.#subject(layer));
      return;
    }
    const { first, second, apart, sameTexts } = this.#match ?? { first: layer, second: null, apart: "The other recording has no layer that answers to this one.", sameTexts: false };
    const names = page.recordings!;
    board!.title = `A: ${names[0]}`;
    other.title = `B: ${names[1]}`;
    difference.title = sameTexts ? "A − B" : "A − B, of two texts";
    board!.enter(this.#subject(first));
    if (second) other.enter(this.#subject(second));
    else other.refuse(apart!);
    if (apart) difference.refuse(apart);
    else difference.enter(this.#subject(first));
  }

  #subject(layer: Layer): Subject {
    const { page } = this.store;
    return {
      grid: new Grid(layer.queryCount, layer.keyCount),
      label: `map of ${layer.queryCount} queries by ${layer.keyCount} keys: arrows move the chosen pair, plus and minus zoom, 0 shows the whole`,
      written: {
        row: this.#writtenFrom(layer),
        key: page.texts[layer.keyText]!.prompt,
      },
      keyName: (key) => ({ token: piecesOf(this.store, layer.keyText, key), position: key }),
      rowName: (row) => {
        const position = layer.queries?.[row] ?? row;
        return { token: piecesOf(this.store, layer.queryText, position), position };
      },
    };
  }

  #writtenFrom(layer: Layer): number | null {
    const { prompt } = this.store.page.texts[layer.queryText]!;
    return prompt === null ? null : rowFrom(layer, prompt);
  }

  #paint(state: State): void {
    const [board, other, difference] = this.#shown;
    const { layer } = this.store;
    if (!this.#match || !other || !difference) {
      board!.paint(this.#heads(layer, state), state.dark);
      return;
    }
    const { first, second, apart } = this.#match;
    board!.paint(this.#heads(first, state), state.dark);
    other.paint(this.#heads(second, state), state.dark);
    if (!apart) difference.paint(this.#differences(first, second, state), state.dark);
  }

  #heads(layer: Layer, state: State): Painted[] {
    return state.heads.filter((head) => layer.heads.includes(head)).map((head) => {
      const place = layer.heads.indexOf(head);
      return headPainting({ layer: layer.position, place }, rgb(headColour(place, state.dark).css), this.#look(layer, place, state));
    });
  }

  /** Blue more, orange less. Of the first chosen head that both have: signed colours of several would not be told apart. */
  #differences(first: Layer, second: Layer, state: State): Painted[] {
    const head = state.heads.find((one) => first.heads.includes(one) && second.heads.includes(one));
    if (head === undefined) return [];
    const colour = (place: number) => rgb(headColour(place, state.dark).css);
    const place = first.heads.indexOf(head);
    return [differencePainting({ layer: first.position, place }, { layer: second.position, place: second.heads.indexOf(head) }, [colour(0), colour(1)], this.#look(first, place, state))];
  }

  #look(layer: Layer, place: number, { scale, pooling }: State): Look {
    const supply = this.#supply();
    const grid = new Grid(layer.queryCount, layer.keyCount);
    const shadeKey = scale === "rank" ? `rank/${layer.position}/${place}` : scale;
    return { supply, grid, pooling, shadeKey, shade: () => shadeOf(scale, supply, layer, place, grid, pooling) };
  }

  #moved(board: MapBoard, resting: boolean): void {
    if (board === this.#first) this.#legend.say(board.level);
    if (!this.#following && board.begun) {
      this.#following = true;
      const { sight } = board;
      for (const other of this.#shown) if (other !== board) other.sight = sight;
      this.#following = false;
    }
    if (!resting) return;
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(() => this.#settle(), QUIET_MS);
  }

  /** After a movement: the address says where we are. */
  #settle(): void {
    const board = this.#first!;
    if (this.element.hidden || !board.begun) return;
    const { key, row, across } = board.sight;
    this.#own = [key, row, across].map((number) => Math.round(number * 10) / 10).join(",");
    this.store.update({ at: this.#own });
  }

  #go(at: string): void {
    const numbers = at.split(",").map(Number);
    if (numbers.length !== 3 || !numbers.every(Number.isFinite)) return;
    const [key, row, across] = numbers as [number, number, number];
    this.#own = at;
    this.#first!.sight = { key, row, across };
  }

  /** What stands under the pointer, or the chosen pair: each head's number. */
  #read(at: Point | null): void {
    this.#asked.abort();
    this.#asked = new AbortController();
    const { signal } = this.#asked;
    const { state } = this.store;
    const chosen = this.#pair(state);
    const shown = at ?? (chosen.row !== null && chosen.key !== null ? { row: chosen.row, key: chosen.key } : null);
    if (!shown) {
      replace(this.#readout, h("span", { class: "quiet" }, "Point at a cell to read it; click to keep its row and column."));
      return;
    }
    const level = at ? this.#first!.level : 0;
    const [row, column] = [shown.row >> level, shown.key >> level];
    const heads = state.heads.slice(0, READ);
    const cells = heads.map((head) => ({ head, number: h("span", { class: "number" }, "…") }));
    replace(this.#readout, ...this.#names(level, row, column), ...cells.map(({ head, number }) => {
      const swatch = h("i", { class: "swatch" });
      swatch.style.setProperty("--head", headColour(this.store.layer.heads.indexOf(head), state.dark).css);
      return h("span", { class: "one", "data-head": head }, swatch, `head ${head} `, number);
    }), state.heads.length > READ ? h("span", { class: "quiet" }, `and ${state.heads.length - READ} more`) : null);
    const layers = this.#match ? [this.#match.first, this.#match.second] : [this.store.layer];
    for (const { head, number } of cells) void this.#number(layers, head, { level, row, column, pooling: state.pooling }, number, signal);
  }

  /** A head's number in the recording; or in both, and their difference. */
  async #number(layers: readonly Layer[], head: number, { level, row, column, pooling }: { level: number; row: number; column: number; pooling: Pooling }, into: HTMLElement, signal: AbortSignal): Promise<void> {
    const digits = level === 0 ? 4 : 5;
    try {
      const values = await Promise.all(layers.map((layer) => {
        const place = layer.heads.indexOf(head);
        const inside = place >= 0 && row * 2 ** level < layer.queryCount && column * 2 ** level < layer.keyCount;
        return inside ? this.#supply().cell(layer.position, place, level, row, column, pooling, signal) : NaN;
      }));
      const [value, other] = values;
      const words = values.map((one) => (Number.isNaN(one) ? "–" : formatWeight(one, digits)));
      const difference = other === undefined ? "" : value! - other;
      replace(into, words.join(" and "), typeof difference === "number" && !Number.isNaN(difference) ? `, ${difference < 0 ? "−" : "+"}${formatWeight(Math.abs(difference), digits)}` : "");
      set(into, "data-value", value!.toPrecision(9));
      set(into, "data-other", other === undefined ? null : other.toPrecision(9));
    } catch (error) {
      if (!signal.aborted) replace(into, error instanceof Error ? error.message : String(error));
    }
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
  #pair(state: State): Pair {
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

  #key(event: KeyboardEvent, board: MapBoard): void {
    if (event.ctrlKey || event.metaKey || event.altKey || !board.begun) return;
    const { row, key } = this.#pair(this.store.state);
    const step = (event.shiftKey ? 10 : 1) * 2 ** board.level;
    const move = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key];
    if (move) {
      const within = (value: number, count: number) => Math.min(Math.max(value, 0), count - 1);
      this.#pin({ row: within((row ?? 0) + move[0]!, this.#grid.queries), key: within((key ?? row ?? 0) + move[1]!, this.#grid.keys) });
    } else if (event.key === "+" || event.key === "=") board.zoom(2);
    else if (event.key === "-") board.zoom(0.5);
    else if (event.key === "0") board.whole(false);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** The first recorded row at or after a position of the text; null where there is none. */
function rowFrom(layer: Layer, position: number): number | null {
  if (!layer.queries) return position < layer.queryCount ? position : null;
  const row = layer.queries.findIndex((one) => one >= position);
  return row < 0 ? null : row;
}

async function shadeOf(scale: Scale, supply: Supply, layer: Layer, place: number, grid: Grid, pooling: Pooling): Promise<Shade> {
  if (scale === "linear") return linear;
  if (scale === "log") return logarithmic;
  return ranked(await supply.tile(layer.position, place, { level: grid.top, y: 0, x: 0 }, pooling, new AbortController().signal));
}
