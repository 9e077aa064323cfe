/** The worker's bundle, put in by build.mjs. */
declare const WORKER_SCRIPT: string;
/** products.wat assembled, as base64; put in by build.mjs. */
declare const PRODUCTS_MODULE: string;
