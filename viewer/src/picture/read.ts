// What a document says about texts that are no words, checked.

import { PageError } from "../data";

/** A picture whose patches are tokens, row after row, behind `first` others. */
export interface Picture {
  readonly src: string;
  readonly width: number;
  readonly height: number;
  readonly rows: number;
  readonly columns: number;
  readonly first: number;
}

/** Frames in order of time. */
export interface Sound {
  readonly secondsPerFrame: number;
  /** The spectrogram, null where there is none. */
  readonly src: string | null;
}

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value);
const isCount = (least: number) => (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= least;

/** Only pixels: nothing that a browser would fetch or run. */
function readAddress(value: unknown, what: string): string {
  if (typeof value !== "string" || !/^data:image\/(png|jpeg);base64,[\w+/=]+$/.test(value)) throw new PageError(`${what} is no PNG or JPEG in a data address.`);
  return value;
}

function readPair(value: unknown, what: string): [number, number] {
  if (!Array.isArray(value) || value.length !== 2 || !value.every(isCount(1))) throw new PageError(`${what} is no pair of numbers from 1 on.`);
  return value as [number, number];
}

export function readPicture(value: unknown, what: string, tokens: number): Picture {
  if (!isObject(value)) throw new PageError(`${what} is no object.`);
  const [width, height] = readPair(value["size"], `${what}.size`);
  const [rows, columns] = readPair(value["grid"], `${what}.grid`);
  const { first } = value;
  if (!isCount(0)(first)) throw new PageError(`${what}.first is no number of tokens.`);
  if (first + rows * columns > tokens) throw new PageError(`${what} has ${rows} × ${columns} patches after ${first} tokens, more than the text's ${tokens} tokens.`);
  return { src: readAddress(value["src"], `${what}.src`), width, height, rows, columns, first };
}

export function readSound(seconds: unknown, spectrogram: unknown, what: string): Sound {
  if (typeof seconds !== "number" || !(seconds > 0)) throw new PageError(`${what}.seconds_per_frame is no number above 0.`);
  if (spectrogram === undefined || spectrogram === null) return { secondsPerFrame: seconds, src: null };
  if (!isObject(spectrogram)) throw new PageError(`${what}.spectrogram is no object.`);
  return { secondsPerFrame: seconds, src: readAddress(spectrogram["src"], `${what}.spectrogram.src`) };
}
