// The binary block: zlib-compressed bytes as text, and the references that name arrays inside it.

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

/** Seven bits a character, the highest first; characters that a page cannot hold stand 256 higher. */
function fromSevens(text: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.floor((text.length * 7) / 8));
  let [held, bits, at] = [0, 0, 0];
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if ((code & ~256) > 127) throw new PageError("The page's data hold characters that do not belong there: the file seems to have been changed.");
    held = ((held << 7) | (code & 127)) & 0x7fff;
    bits += 7;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = held >> bits;
  }
  return bytes;
}

const CODINGS: Record<string, (text: string) => Uint8Array<ArrayBuffer>> = { base64: (text) => fromBase64(text.trim()), sevens: fromSevens };

/** The bytes of a page's data, from their text and the name of its coding. */
export async function inflate(text: string, coding: string): Promise<ArrayBuffer> {
  if (typeof DecompressionStream === "undefined") {
    throw new PageError("This browser cannot unpack the page's data (it has no DecompressionStream): open the page in Chrome 80, Firefox 113, Safari 16.4 or newer.");
  }
  const decode = CODINGS[coding];
  if (!decode) throw new PageError(`The page's data are coded as ${JSON.stringify(coding)}, which its viewer does not know.`);
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = decode(text);
  } catch (error) {
    if (error instanceof PageError) throw error;
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
