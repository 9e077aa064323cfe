// One head's map as OpenSeadragon takes it: tiles that are painted here instead of downloaded.

import OpenSeadragon from "openseadragon";
import { Grid, TILE, type Place } from "./grid";

/** A map that can be drawn: where its pixels come from, and a name by which OpenSeadragon keeps them. */
export interface Painted {
  readonly grid: Grid;
  /** Names everything that the pixels depend on. */
  readonly key: string;
  /** A tile's pixels, row by row, four bytes each. */
  pixels(place: Place, signal: AbortSignal): Promise<Uint8ClampedArray>;
}

/** Tokens a side once the map is filled up to whole cells of the highest level. */
export const filled = (length: number, grid: Grid): number => Math.max(1, Math.ceil(length / 2 ** grid.top)) * 2 ** grid.top;

interface Job {
  readonly postData: Place;
  readonly userData: { controller?: AbortController };
  finish(data: CanvasRenderingContext2D, request: null, kind: string): void;
  fail(message: string, request: null): void;
}

export function mapSource(map: Painted, failed: (error: unknown) => void): OpenSeadragon.TileSource {
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
    downloadTileStart: (job: Job) => void draw(map, job, width, height, failed),
    downloadTileAbort: (job: Job) => job.userData.controller?.abort(),
  });
}

async function draw(map: Painted, job: Job, width: number, height: number, failed: (error: unknown) => void): Promise<void> {
  const controller = new AbortController();
  job.userData.controller = controller;
  const place = job.postData;
  try {
    const pixels = await map.pixels(place, controller.signal);
    const { rows, columns } = map.grid.tile(place);
    const canvas = document.createElement("canvas");
    canvas.width = Math.min(TILE, width / 2 ** place.level - place.x * TILE);
    canvas.height = Math.min(TILE, height / 2 ** place.level - place.y * TILE);
    const context = canvas.getContext("2d")!;
    const image = context.createImageData(columns, rows);
    image.data.set(pixels);
    context.putImageData(image, 0, 0);
    job.finish(context, null, "context2d");
  } catch (error) {
    if (!controller.signal.aborted) failed(error);
    job.fail(error instanceof Error ? error.message : String(error), null);
  }
}
