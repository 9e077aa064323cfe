// Where a map's cells come from: workers that compute them from the page, or the server that sent it.

import { PageError } from "../data";
import type { Page } from "../document";
import { Grid, TILE, type Place, type Pooling } from "./grid";
import type { Answer, Job, Order, Told } from "./worker";

/** Where tiles come from. */
export interface Tiles {
  /** What tiles are computed with: "simd", WebAssembly's vectors; "plain" JavaScript where they may not run; "remote", elsewhere. */
  readonly arithmetic: Promise<Told["arithmetic"] | "remote">;
  /** A tile's cells, row by row: shares of attention or largest weights, each from 0 to 1. */
  tile(layer: number, head: number, place: Place, pooling: Pooling, signal: AbortSignal): Promise<Float32Array>;
}

export interface Supply extends Tiles {
  /** One cell's number, not rounded to be drawn. */
  cell(layer: number, head: number, level: number, row: number, column: number, pooling: Pooling, signal: AbortSignal): Promise<number>;
}

type Asked = Job extends infer One ? (One extends Job ? Omit<One, "id"> : never) : never;

interface Waiting {
  resolve(answer: Answer): void;
  reject(error: unknown): void;
}

const MOST_WORKERS = 3;

/** Tiles of a page that carries its own numbers. */
export class WorkerSupply implements Supply {
  readonly #workers: Worker[] = [];
  readonly #waiting = new Map<number, Waiting>();
  readonly arithmetic: Promise<Told["arithmetic"]>;
  #next = 0;
  #told: (name: Told["arithmetic"]) => void = () => {};

  /** `script` is the worker's own; `document` and `data` are what the page was read from. */
  constructor(script: string, document: string, data: ArrayBuffer) {
    this.arithmetic = new Promise((resolve) => { this.#told = resolve; });
    const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    const count = Math.max(1, Math.min(MOST_WORKERS, (navigator.hardwareConcurrency || 2) - 1));
    for (let i = 0; i < count; i++) {
      const worker = new Worker(url);
      worker.onmessage = ({ data: answer }: MessageEvent<Answer | Told>) => {
        if ("arithmetic" in answer) this.#told(answer.arithmetic);
        else this.#answered(answer);
      };
      worker.onerror = (event) => this.#failed(event.message);
      const copy = data.slice(0);
      worker.postMessage({ kind: "open", document, data: copy } satisfies Order, [copy]);
      this.#workers.push(worker);
    }
    URL.revokeObjectURL(url);
  }

  async tile(layer: number, head: number, place: Place, pooling: Pooling, signal: AbortSignal): Promise<Float32Array> {
    const answer = await this.#ask({ kind: "tile", layer, head, place, pooling }, signal);
    return (answer as { cells: Float32Array }).cells;
  }

  async cell(layer: number, head: number, level: number, row: number, column: number, pooling: Pooling, signal: AbortSignal): Promise<number> {
    const answer = await this.#ask({ kind: "cell", layer, head, level, row, column, pooling }, signal);
    return (answer as { value: number }).value;
  }

  #ask(job: Asked, signal: AbortSignal): Promise<Answer> {
    const id = this.#next++;
    // A head stays with one worker, which has its numbers unpacked; several heads go to several.
    const worker = this.#workers[(job.layer * 31 + job.head + (job.kind === "tile" ? job.place.x : 0)) % this.#workers.length]!;
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      this.#waiting.set(id, { resolve, reject });
      signal.addEventListener("abort", () => {
        if (!this.#waiting.delete(id)) return;
        worker.postMessage({ kind: "drop", id } satisfies Order);
        reject(signal.reason);
      }, { once: true });
      worker.postMessage({ ...job, id } as Job);
    });
  }

  #answered(answer: Answer): void {
    const asked = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if ("error" in answer) asked?.reject(new PageError(answer.error));
    else asked?.resolve(answer);
  }

  #failed(message: string): void {
    for (const asked of this.#waiting.values()) asked.reject(new PageError(`The map's worker failed: ${message}.`));
    this.#waiting.clear();
  }
}

/** How a page asks the server that sent it, or the notebook that shows it. */
export type Ask = (path: string, parameters: Record<string, string>, signal: AbortSignal) => Promise<ArrayBuffer>;

/** Tiles of a page that is served: the server's means of cells, as shares of attention. */
export class RemoteSupply implements Tiles {
  readonly arithmetic = Promise.resolve("remote" as const);
  readonly #grids: Grid[];

  constructor(readonly page: Page, readonly ask: Ask) {
    this.#grids = page.layers.map((layer) => new Grid(layer.queryCount, layer.keyCount));
  }

  async tile(layer: number, head: number, { level, y, x }: Place, pooling: Pooling, signal: AbortSignal): Promise<Float32Array> {
    const grid = this.#grids[layer]!;
    const { column, rows, columns } = grid.tile({ level, y, x });
    const answer = await this.ask("tile", {
      layer: String(layer), head: String(this.page.layers[layer]!.heads[head]), z: String(level), y: String(y), x: String(x), pooling,
    }, signal);
    const cells = new Float32Array(answer);
    if (cells.length !== rows * columns) throw new PageError(`A tile came with ${cells.length} cells, expected ${rows * columns}.`);
    if (pooling === "mean" && level > 0) {
      for (let i = 0; i < cells.length; i++) {
        const { from, to } = grid.keysOf(level, column + (i % columns));
        cells[i]! *= to - from;
      }
    }
    return cells;
  }
}

/** Remembers the tiles that were drawn last, so that another colour scale, a step back or a number under the pointer costs nothing. */
export class RememberingSupply implements Supply {
  readonly #tiles = new Map<string, Float32Array>();
  #bytes = 0;

  constructor(readonly page: Page, readonly inner: Tiles & Partial<Supply>, readonly most = 192e6) {}

  async tile(layer: number, head: number, place: Place, pooling: Pooling, signal: AbortSignal): Promise<Float32Array> {
    const key = [layer, head, place.level, place.y, place.x, pooling].join();
    const known = this.#tiles.get(key);
    if (known) {
      this.#tiles.delete(key);
      this.#tiles.set(key, known);
      return known;
    }
    const cells = await this.inner.tile(layer, head, place, pooling, signal);
    this.#tiles.set(key, cells);
    this.#bytes += cells.byteLength;
    for (const [oldest, { byteLength }] of this.#tiles) {
      if (this.#bytes <= this.most) break;
      this.#tiles.delete(oldest);
      this.#bytes -= byteLength;
    }
    return cells;
  }

  get arithmetic(): Supply["arithmetic"] {
    return this.inner.arithmetic;
  }

  async cell(layer: number, head: number, level: number, row: number, column: number, pooling: Pooling, signal: AbortSignal): Promise<number> {
    if (this.inner.cell) return this.inner.cell(layer, head, level, row, column, pooling, signal);
    const place = { level, y: Math.floor(row / TILE), x: Math.floor(column / TILE) };
    const cells = await this.tile(layer, head, place, pooling, signal);
    const { queryCount, keyCount } = this.page.layers[layer]!;
    const { columns } = new Grid(queryCount, keyCount).tile(place);
    return cells[(row % TILE) * columns + (column % TILE)]!;
  }
}
