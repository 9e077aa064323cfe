/** The module that computes a map's tiles. */
export function products(): Promise<Uint8Array<ArrayBuffer>>;
