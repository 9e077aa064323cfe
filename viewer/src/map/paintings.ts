// What a map is painted from: one head, or what two heads differ in.

import { Grid, type Place, type Pooling } from "./grid";
import { paint, type Shade } from "./shade";
import type { Painted } from "./source";
import type { Supply } from "./supply";

type Colour = readonly [number, number, number];

/** A head's cells: its layer's place on the page and its own place in the layer. */
export interface Head {
  readonly layer: number;
  readonly place: number;
}

export interface Look {
  readonly supply: Supply;
  readonly grid: Grid;
  readonly pooling: Pooling;
  /** Begun when the first tile is wanted. */
  readonly shade: () => Promise<Shade>;
  /** Names the shade. */
  readonly shadeKey: string;
}

/** One head in its colour, the number as opacity. */
export function headPainting(head: Head, colour: Colour, look: Look): Painted {
  return {
    grid: look.grid,
    key: [head.layer, head.place, look.pooling, look.shadeKey, colour.join("-")].join("/"),
    async pixels(place: Place, signal: AbortSignal) {
      const [cells, shade] = await Promise.all([look.supply.tile(head.layer, head.place, place, look.pooling, signal), look.shade()]);
      const pixels = new Uint8ClampedArray(4 * cells.length);
      paint(cells, colour, shade, pixels);
      return pixels;
    },
  };
}

/** One head less another: the first colour where it gives more, the second where it gives less. */
export function differencePainting(first: Head, second: Head, [more, less]: readonly [Colour, Colour], look: Look): Painted {
  const { supply, pooling } = look;
  return {
    grid: look.grid,
    key: ["difference", first.layer, first.place, second.layer, second.place, pooling, look.shadeKey, more.join("-"), less.join("-")].join("/"),
    async pixels(place: Place, signal: AbortSignal) {
      const [here, there, shade] = await Promise.all([
        supply.tile(first.layer, first.place, place, pooling, signal), supply.tile(second.layer, second.place, place, pooling, signal), look.shade(),
      ]);
      return differences(here, there, more, less, shade);
    },
  };
}

export function differences(here: Float32Array, there: Float32Array, more: Colour, less: Colour, shade: Shade): Uint8ClampedArray {
  const pixels = new Uint8ClampedArray(4 * here.length);
  for (let i = 0; i < here.length; i++) {
    const difference = here[i]! - there[i]!;
    pixels.set(difference < 0 ? less : more, 4 * i);
    pixels[4 * i + 3] = shade(Math.abs(difference));
  }
  return pixels;
}
