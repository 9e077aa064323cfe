// Integers of q and k: zigzag coded (0, -1, 1, -2, ... as 0, 1, 2, 3, ...), split in byte planes, lowest byte first. Each
// position has a power of two of its own.

export interface Planes {
  /** [bytes, heads, dims, length], row-major. */
  readonly data: Uint8Array;
  /** [heads, length]: what a position's integers are shifted by. */
  readonly shifts: Uint8Array;
  readonly heads: number;
  readonly dims: number;
  readonly bytes: number;
  readonly length: number;
}

export function zigzag(coded: number): number {
  return (coded >>> 1) ^ -(coded & 1);
}

/** One head as [dims, length]: the keys of one dimension lie side by side, so a row is D long sweeps. */
export function decodeHead(planes: Planes, head: number): Int32Array {
  const { data, shifts, heads, dims, bytes, length } = planes;
  const out = new Int32Array(dims * length);
  for (let dim = 0; dim < dims; dim++) {
    const to = dim * length;
    for (let byte = 0; byte < bytes; byte++) {
      const plane = ((byte * heads + head) * dims + dim) * length;
      const shift = 8 * byte;
      for (let i = 0; i < length; i++) out[to + i]! |= data[plane + i]! << shift;
    }
    for (let i = 0; i < length; i++) out[to + i] = zigzag(out[to + i]!) << shifts[head * length + i]!;
  }
  return out;
}

/** The dims of one position of one head, without decoding the rest. */
export function decodeOne(planes: Planes, head: number, position: number): Int32Array {
  const { data, shifts, heads, dims, bytes, length } = planes;
  const out = new Int32Array(dims);
  for (let dim = 0; dim < dims; dim++) {
    let coded = 0;
    for (let byte = 0; byte < bytes; byte++) {
      coded |= data[((byte * heads + head) * dims + dim) * length + position]! << (8 * byte);
    }
    out[dim] = zigzag(coded) << shifts[head * length + position]!;
  }
  return out;
}
