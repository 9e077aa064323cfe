// Beside the page: computes tiles while the page draws. Told what to make, and what is no longer wanted.

import { fromBase64 } from "../data";
import { parseDocument, readPage } from "../document";
import type { Place, Pooling } from "./grid";
import { TileMaker } from "./maker";
import { plain, simd, type Arithmetic } from "./products";

export interface TileJob {
  readonly kind: "tile";
  readonly id: number;
  readonly layer: number;
  readonly head: number;
  readonly place: Place;
  readonly pooling: Pooling;
}

export interface CellJob {
  readonly kind: "cell";
  readonly id: number;
  readonly layer: number;
  readonly head: number;
  readonly level: number;
  readonly row: number;
  readonly column: number;
  readonly pooling: Pooling;
}

export type Job = TileJob | CellJob;
export type Order = Job | { readonly kind: "open"; readonly document: string; readonly data: ArrayBuffer } | { readonly kind: "drop"; readonly id: number };
/** What a worker computes with is said once, before the first answer. */
export type Told = { readonly arithmetic: Arithmetic["name"] };
export type Answer = { readonly id: number; readonly cells: Float32Array } | { readonly id: number; readonly value: number } | { readonly id: number; readonly error: string };

interface Scope {
  onmessage: ((event: MessageEvent<Order>) => void) | null;
  postMessage(answer: Answer | Told, transfer?: Transferable[]): void;
}

const scope = globalThis as unknown as Scope;
let makers: TileMaker[] = [];
const waiting = new Map<number, Job>();
let running = false;

/** A single cell is under the pointer; then the whole before its parts, and what was asked for last before the rest. */
function next(): Job | undefined {
  const level = (job: Job) => (job.kind === "cell" ? Infinity : job.place.level);
  let best: Job | undefined;
  for (const job of waiting.values()) if (!best || level(job) >= level(best)) best = job;
  return best;
}

function work(): void {
  const job = next();
  running = job !== undefined;
  if (!job) return;
  waiting.delete(job.id);
  try {
    const maker = makers[job.layer]!;
    if (job.kind === "cell") {
      scope.postMessage({ id: job.id, value: maker.cell(job.head, job.level, job.row, job.column, job.pooling) });
    } else {
      const cells = maker.tile(job.head, job.place, job.pooling);
      scope.postMessage({ id: job.id, cells }, [cells.buffer]);
    }
  } catch (error) {
    scope.postMessage({ id: job.id, error: error instanceof Error ? error.message : String(error) });
  }
  // Messages that came meanwhile, such as "no longer wanted", are read first.
  setTimeout(work, 0);
}

scope.onmessage = ({ data: order }) => {
  if (order.kind === "open") {
    const arithmetic = simd(fromBase64(PRODUCTS_MODULE)) ?? plain;
    scope.postMessage({ arithmetic: arithmetic.name });
    makers = readPage(parseDocument(order.document), order.data).layers.map((layer) => new TileMaker(layer, arithmetic));
  }
  else if (order.kind === "drop") waiting.delete(order.id);
  else {
    waiting.set(order.id, order);
    if (!running) {
      running = true;
      setTimeout(work, 0);
    }
  }
};
