// WebAssembly text to bytes; the same text gives the same bytes.
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import wabt from "wabt";

const PRODUCTS = fileURLToPath(new URL("src/map/products.wat", import.meta.url));

/** The module that computes a map's tiles. */
export async function products() {
  const { parseWat } = await wabt();
  const module = parseWat(PRODUCTS, await readFile(PRODUCTS, "utf8"), { simd: true });
  try {
    module.resolveNames();
    module.validate();
    return module.toBinary({}).buffer;
  } finally {
    module.destroy();
  }
}
