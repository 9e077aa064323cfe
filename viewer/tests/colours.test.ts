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

const degrees = (radians: number) => ((radians * 180) / Math.PI + 360) % 360;
const radians = (angle: number) => (angle * Math.PI) / 180;

/** CIEDE2000 (Sharma, Wu and Dalal 2005, equations 2 to 22), which follows the eye better than the distance in L*a*b*. */
function difference([L1, a1, b1]: Colour, [L2, a2, b2]: Colour): number {
  const middle = ((Math.hypot(a1!, b1!) + Math.hypot(a2!, b2!)) / 2) ** 7;
  const stretch = 1 + 0.5 * (1 - Math.sqrt(middle / (middle + 25 ** 7)));
  const [C1, C2] = [Math.hypot(a1! * stretch, b1!), Math.hypot(a2! * stretch, b2!)];
  const [h1, h2] = [C1 === 0 ? 0 : degrees(Math.atan2(b1!, a1! * stretch)), C2 === 0 ? 0 : degrees(Math.atan2(b2!, a2! * stretch))];
  const grey = C1 * C2 === 0;
  const turn = grey ? 0 : ((h2 - h1 + 540) % 360) - 180;
  const dH = 2 * Math.sqrt(C1 * C2) * Math.sin(radians(turn) / 2);
  const [L, C] = [(L1! + L2!) / 2, (C1 + C2) / 2];
  const far = Math.abs(h1 - h2) > 180;
  const h = grey ? h1 + h2 : far ? (h1 + h2 < 360 ? (h1 + h2 + 360) / 2 : (h1 + h2 - 360) / 2) : (h1 + h2) / 2;
  const T = 1 - 0.17 * Math.cos(radians(h - 30)) + 0.24 * Math.cos(radians(2 * h)) + 0.32 * Math.cos(radians(3 * h + 6)) - 0.2 * Math.cos(radians(4 * h - 63));
  const SL = 1 + (0.015 * (L - 50) ** 2) / Math.sqrt(20 + (L - 50) ** 2);
  const [SC, SH] = [1 + 0.045 * C, 1 + 0.015 * C * T];
  const RT = -Math.sin(radians(60 * Math.exp(-(((h - 275) / 25) ** 2)))) * 2 * Math.sqrt(C ** 7 / (C ** 7 + 25 ** 7));
  const [l, c, hue] = [(L2! - L1!) / SL, (C2 - C1) / SC, dH / SH];
  return Math.sqrt(l * l + c * c + hue * hue + RT * c * hue);
}

/** The two closest of the colours, as the given eyes see them. */
function closest(colours: readonly string[], eyes: string): number {
  const seen = colours.map((colour) => lab(rgb(colour), EYES[eyes]!));
  return Math.min(...seen.flatMap((a, i) => seen.slice(0, i).map((b) => difference(a, b))));
}

it("the difference of colours is that of the paper's table", () => {
  expect(difference([50, 2.6772, -79.7751], [50, 0, -82.7485])).toBeCloseTo(2.0425, 4);
  expect(difference([50, -1, 2], [50, 0, 0])).toBeCloseTo(2.3669, 4);
  expect(difference([50, 2.5, 0], [50, 0, -2.5])).toBeCloseTo(4.3065, 4);
  expect(difference([50, 2.5, 0], [73, 25, -18])).toBeCloseTo(27.1492, 4);
  expect(difference([22.7233, 20.0904, -46.694], [23.0331, 14.973, -42.5619])).toBeCloseTo(2.0373, 4);
  expect(difference([90.8027, -2.0831, 1.441], [91.1528, -1.6435, 0.0447])).toBeCloseTo(1.4441, 4);
});

it("the comparison would notice red and green of one lightness", () => {
  const pair = ["#c04000", "#5a7a00"];
  expect(closest(pair, "normal")).toBeGreaterThan(35);
  expect(closest(pair, "deutan")).toBeLessThan(8);
});

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

  it.each(Object.keys(EYES))("the first eight colours differ clearly for %s eyes", (eyes) => {
    expect(closest(PALETTES[theme].slice(0, 8), eyes)).toBeGreaterThan(10);
    expect(closest(PALETTES[theme], eyes)).toBeGreaterThan(9);
  });

  it("the ring around what has the focus is seen on every ground", () => {
    for (const ground of ["paper", "raised", "wash"]) expect(contrast(variable(theme, "focus"), variable(theme, ground))).toBeGreaterThan(3);
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
