// The binary block: base64 of zlib-compressed bytes, and the references that name arrays inside it.

/** What the reader of a page can do nothing about but should be told, in one sentence. */
export class PageError extends Error {
  override name = "PageError";
}

const ELEMENTS = { f64: Float64Array, f32: Float32Array, i32: Int32Array, u16: Uint16Array, u8: Uint8Array } as const;
type Dtype = keyof typeof ELEMENTS;
export type ArrayOf<T extends Dtype> = InstanceType<(typeof ELEMENTS)[T]>;

export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const modern = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (modern) return modern.call(Uint8Array, text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

export async function inflate(base64: string): Promise<ArrayBuffer> {
  if (typeof DecompressionStream === "undefined") {
    throw new PageError("This browser cannot unpack the page's data (it has no DecompressionStream): open the page in Chrome 80, Firefox 113, Safari 16.4 or newer.");
  }
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = fromBase64(base64.trim());
  } catch {
    throw new PageError("The page's data are not base64: the file seems to have been cut or changed.");
  }
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return await new Response(stream).arrayBuffer();
  } catch {
    throw new PageError("The page's data cannot be unpacked: the file seems to have been cut or changed.");
  }
}

function opened(base64: string, what: string): ArrayBuffer {
  try {
    return fromBase64(base64).buffer;
  } catch {
    throw new PageError(`${what} is not base64: the page seems to have been cut or changed.`);
  }
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Reads the array that a reference names, or carries itself; `shape` has null where any size will do. */
export function arrayAt<T extends Dtype>(
  buffer: ArrayBuffer,
  reference: unknown,
  what: string,
  dtype: T,
  shape: readonly (number | null)[],
): { values: ArrayOf<T>; shape: number[] } {
  const { base64, dtype: found, shape: sizes, ...where } = (reference ?? {}) as { base64?: unknown; offset?: unknown; dtype?: unknown; shape?: unknown };
  const inline = typeof base64 === "string" ? opened(base64, what) : null;
  const offset = inline ? 0 : where.offset;
  const data = inline ?? buffer;
  if (!isSize(offset) || offset % 8 !== 0 || !Array.isArray(sizes) || !sizes.every(isSize)) {
    throw new PageError(`${what} is not a reference to data: expected offset (a multiple of 8), dtype and shape.`);
  }
  if (found !== dtype) throw new PageError(`${what} has dtype ${String(found)}, expected ${dtype}.`);
  const fits = sizes.length === shape.length && shape.every((size, axis) => size === null || size === sizes[axis]);
  if (!fits) {
    const expected = shape.map((size) => size ?? "any").join(", ");
    throw new PageError(`${what} has shape [${sizes.join(", ")}], expected [${expected}].`);
  }
  const count = sizes.reduce((product, size) => product * size, 1);
  const end = offset + count * ELEMENTS[dtype].BYTES_PER_ELEMENT;
  if (end > data.byteLength) {
    throw new PageError(`${what} ends at byte ${end}, but the page's data have ${data.byteLength} bytes: the file seems to have been cut.`);
  }
  return { values: new ELEMENTS[dtype](data, offset, count) as ArrayOf<T>, shape: sizes };
}
