// A colour a head: three of Okabe and Ito's, and nine found by search so that every pair stays apart for normal, protan, deutan
// and tritan eyes. Colour never stands alone: the head's number or its place is beside it, and a second dozen is drawn dashed.

const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#bb7799", "#aa1177", "#2233cc", "#665500", "#0088ff", "#aa5555", "#770011", "#335533", "#443344"];
const DARK = ["#55aaff", "#f0813a", "#33aa77", "#bb99bb", "#bb4499", "#6677ee", "#ffbb44", "#00ddff", "#cc1155", "#aa7744", "#99cc88", "#558877"];

/** The strongest tint, in percent, that text may stand on: its contrast stays above 4.5 in both themes. */
export const TEXT_TINT = 44;

export const PALETTES = { light: LIGHT, dark: DARK } as const;

export interface HeadColour {
  readonly css: string;
  readonly dashed: boolean;
}

/** `place` is the head's place in its layer's list. */
export function headColour(place: number, dark: boolean): HeadColour {
  const palette = dark ? DARK : LIGHT;
  return { css: palette[place % palette.length]!, dashed: Math.floor(place / palette.length) % 2 === 1 };
}

/** A head's colour as a ground for text, stronger with the weight. */
export function tint(css: string, weight: number): string {
  return `color-mix(in srgb, ${css} ${Math.round(Math.min(weight, 1) * TEXT_TINT)}%, transparent)`;
}

export function rgb(css: string): [number, number, number] {
  const value = parseInt(css.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}
