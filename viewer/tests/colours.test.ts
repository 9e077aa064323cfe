import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { headColour, PALETTES, rgb, TEXT_TINT } from "../src/colours";

const css = readFileSync(new URL("../src/style.css", import.meta.url), "utf8");
const blocks = { light: css.slice(0, css.indexOf('[data-theme="dark"]')), dark: css.slice(css.indexOf('[data-theme="dark"]')) };
const variable = (theme: "light" | "dark", name: string) => rgb(new RegExp(`--${name}: (#[0-9a-f]{6})`).exec(blocks[theme])![1]!);

type Colour = readonly number[];
const mix = (top: Colour, under: Colour, share: number): Colour => top.map((channel, i) => channel * share + under[i]! * (1 - share));

/** WCAG 2.2, relative luminance and contrast ratio. */
function luminance(colour: Colour): number {
  const [r, g, b] = colour.map((channel) => (channel / 255 <= 0.04045 ? channel / 255 / 12.92 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
}
function contrast(a: Colour, b: Colour): number {
  const [bright, dim] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (bright! + 0.05) / (dim! + 0.05);
}

const linear = (colour: Colour) => colour.map((channel) => (channel / 255 <= 0.04045 ? channel / 255 / 12.92 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
const times = (matrix: readonly Colour[], vector: Colour) => matrix.map((row) => row.reduce((sum, value, i) => sum + value * vector[i]!, 0));

/** Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB. */
const EYES: Record<string, readonly Colour[]> = {
  normal: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  protan: [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
  deutan: [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
  tritan: [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
};

/** CIE L*a*b* (D65) as the given eyes see a colour. */
function lab(colour: Colour, eyes: readonly Colour[]): Colour {
  const seen = times(eyes, linear(colour)).map((channel) => Math.min(Math.max(channel, 0), 1));
  const xyz = times([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], seen);
  const [x, y, z] = [xyz[0]! / 0.9505, xyz[1]!, xyz[2]! / 1.089].map((t) => (t > 0.008856 ? Math.cbrt(t) : 7.787 * t + 16 / 116));
  return [116 * y! - 16, 500 * (x! - y!), 200 * (y! - z!)];
}

describe.each(["light", "dark"] as const)("%s", (theme) => {
  const paper = variable(theme, "paper");
  const ink = variable(theme, "ink");

  it("text is readable on paper, on panels and on washes", () => {
    for (const ground of ["paper", "raised", "wash"]) {
      expect(contrast(ink, variable(theme, ground))).toBeGreaterThan(7);
      expect(contrast(variable(theme, "quiet"), variable(theme, ground))).toBeGreaterThan(4.5);
    }
  });

  it.each(PALETTES[theme])("%s is seen on paper and carries text as a tint", (colour) => {
    expect(contrast(rgb(colour), paper)).toBeGreaterThan(3);
    expect(contrast(ink, mix(rgb(colour), paper, TEXT_TINT / 100))).toBeGreaterThan(4.5);
  });

  it.each(Object.keys(EYES))("every pair of colours stays apart for %s eyes", (eyes) => {
    const seen = PALETTES[theme].map((colour) => lab(rgb(colour), EYES[eyes]!));
    const distances = seen.flatMap((a, i) => seen.slice(0, i).map((b) => Math.hypot(...a.map((value, axis) => value - b[axis]!))));
    expect(Math.min(...distances)).toBeGreaterThan(12);
  });

  it("chips of the strongest heads stay readable", () => {
    expect(contrast(ink, mix(variable(theme, "map"), paper, 0.5))).toBeGreaterThan(4.5);
  });

  it("twelve colours, then the same dashed", () => {
    const dozen = Array.from({ length: 12 }, (_, place) => headColour(place, theme === "dark"));
    expect(new Set(dozen.map(({ css: colour }) => colour)).size).toBe(12);
    expect(dozen.some(({ dashed }) => dashed)).toBe(false);
    expect(headColour(13, theme === "dark")).toEqual({ css: dozen[1]!.css, dashed: true });
  });
});
