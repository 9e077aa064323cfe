// One head's map as OpenSeadragon takes it: tiles that are painted here instead of downloaded.

import OpenSeadragon from "openseadragon";
import { Grid, TILE, type Place, type Pooling } from "./grid";
import { paint, type Shade } from "./shade";
import type { Supply } from "./supply";

export interface Painted {
  readonly supply: Supply;
  readonly layer: number;
  readonly head: number;
  readonly grid: Grid;
  readonly pooling: Pooling;
  readonly colour: readonly [number, number, number];
  readonly shade: Promise<Shade>;
  /** Names all of the above but the supply: OpenSeadragon keeps its tiles by it. */
  readonly key: string;
  readonly failed: (error: unknown) => void;
}

/** Tokens a side once the map is filled up to whole cells of the highest level. */
export const filled = (length: number, grid: Grid): number => Math.max(1, Math.ceil(length / 2 ** grid.top)) * 2 ** grid.top;

interface Job {
  readonly postData: Place;
  readonly userData: { controller?: AbortController };
  finish(data: CanvasRenderingContext2D, request: null, kind: string): void;
  fail(message: string, request: null): void;
}

export function mapSource(map: Painted): OpenSeadragon.TileSource {
  const { grid } = map;
  const width = filled(grid.keys, grid);
  const height = filled(grid.queries, grid);
  const place = (level: number, x: number, y: number): Place => ({ level: grid.top - level, y, x });
  const source = new OpenSeadragon.TileSource({ width, height, tileSize: TILE, tileOverlap: 0, minLevel: 0, maxLevel: grid.top });
  return Object.assign(source, {
    getTileUrl: (level: number, x: number, y: number) => `${map.key}/${level}/${y}/${x}`,
    getTilePostData: place,
    tileExists: (level: number, x: number, y: number) => grid.has(place(level, x, y)),
    hasTransparency: () => true,
    downloadTileStart: (job: Job) => void draw(map, job, width, height),
    downloadTileAbort: (job: Job) => job.userData.controller?.abort(),
  });
}

async function draw(map: Painted, job: Job, width: number, height: number): Promise<void> {
  const controller = new AbortController();
  job.userData.controller = controller;
  const place = job.postData;
  try {
    const [cells, shade] = await Promise.all([map.supply.tile(map.layer, map.head, place, map.pooling, controller.signal), map.shade]);
    const { rows, columns } = map.grid.tile(place);
    const canvas = document.createElement("canvas");
    canvas.width = Math.min(TILE, width / 2 ** place.level - place.x * TILE);
    canvas.height = Math.min(TILE, height / 2 ** place.level - place.y * TILE);
    const context = canvas.getContext("2d")!;
    const image = context.createImageData(columns, rows);
    paint(cells, map.colour, shade, image.data);
    context.putImageData(image, 0, 0);
    job.finish(context, null, "context2d");
  } catch (error) {
    if (!controller.signal.aborted) map.failed(error);
    job.fail(error instanceof Error ? error.message : String(error), null);
  }
}
