// Bundles the viewer into the files that Python inlines, script, style and what unpacks the script, and the notebook's widget. The same source gives the same bytes.
import { build } from "esbuild";
import { fileURLToPath } from "node:url";
import { products } from "./assemble.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const out = here("../src/multihead/view/static/");
// Licences of what is bundled stay in the bundle.
const common = { bundle: true, minify: true, target: "es2022", charset: "ascii", legalComments: "inline", logLevel: "info" };

// The map's worker is started from text, so that the page stays one file.
const arithmetic = { PRODUCTS_MODULE: JSON.stringify(Buffer.from(await products()).toString("base64")) };
const worker = await build({ ...common, define: arithmetic, entryPoints: [here("src/map/worker.ts")], format: "iife", write: false });
const define = { WORKER_SCRIPT: JSON.stringify(worker.outputFiles[0].text) };
await build({ ...common, define, entryPoints: [here("src/main.ts")], format: "iife", outfile: `${out}multihead.js` });
await build({ ...common, entryPoints: [here("src/loader.ts")], format: "iife", outfile: `${out}loader.js` });
await build({ ...common, entryPoints: [here("src/widget.ts")], format: "esm", outfile: `${out}widget.js` });
await build({ ...common, entryPoints: [here("src/style.css")], target: ["chrome109", "firefox115", "safari16.4"], outfile: `${out}multihead.css` });
