// Where the cells of a map lie. At level z a cell is 2^z recorded queries by 2^z keys; the highest level is one tile.

/** Cells a side of a tile. */
export const TILE = 256;

/** "mean": the share of a query's attention that a cell's keys get, on average over its queries. "max": the largest weight. */
export type Pooling = "mean" | "max";

export interface Place {
  readonly level: number;
  readonly y: number;
  readonly x: number;
}

/** A rectangle of cells of one level. */
export interface Cells {
  readonly row: number;
  readonly column: number;
  readonly rows: number;
  readonly columns: number;
}

export interface Range {
  readonly from: number;
  readonly to: number;
}

export class Grid {
  /** The highest level. */
  readonly top: number;

  constructor(readonly queries: number, readonly keys: number) {
    const longest = Math.max(queries, keys, 1);
    let top = 0;
    while (TILE * 2 ** top < longest) top++;
    this.top = top;
  }

  rows(level: number): number {
    return Math.ceil(this.queries / 2 ** level);
  }

  columns(level: number): number {
    return Math.ceil(this.keys / 2 ** level);
  }

  has({ level, y, x }: Place): boolean {
    return level >= 0 && level <= this.top && y >= 0 && x >= 0 && y * TILE < this.rows(level) && x * TILE < this.columns(level);
  }

  /** The cells of a tile, cut at the map's edges. */
  tile({ level, y, x }: Place): Cells {
    const row = y * TILE;
    const column = x * TILE;
    return { row, column, rows: Math.min(TILE, this.rows(level) - row), columns: Math.min(TILE, this.columns(level) - column) };
  }

  /** Recorded queries of a row of cells. */
  queriesOf(level: number, row: number): Range {
    return span(row, 2 ** level, this.queries);
  }

  /** Keys of a column of cells. */
  keysOf(level: number, column: number): Range {
    return span(column, 2 ** level, this.keys);
  }
}

function span(cell: number, side: number, length: number): Range {
  return { from: cell * side, to: Math.min((cell + 1) * side, length) };
}
