import { useEffect, useRef } from "react";
import uPlot from "uplot";

import "uplot/dist/uPlot.min.css";

import { formatCompact } from "./format";
import { useIsDark } from "./theme";

/** A line or an area of a chart. */
export interface Series {
  label: string;
  /** A variable of the style sheet: `--accent`, `--good`, `--bad`, `--warning`, `--muted`. */
  colour?: string;
  values: readonly (number | null)[];
  dashed?: boolean;
  /** Draw the line across values that are missing. */
  connected?: boolean;
}

interface ChartProps {
  title: string;
  /** The values of the horizontal axis: times of Unix, or steps where `steps` is set. */
  x: readonly number[];
  series: readonly Series[];
  /** Write a value with its unit. */
  format?: (value: number) => string;
  /** The horizontal axis counts steps and not times. */
  steps?: boolean;
  /** Draw bars, those of the series on top of each other; `x` are the times at which they begin. */
  bars?: boolean;
  /** Write the times in UTC, and not in the zone of the reader: for days that begin in UTC. */
  utc?: boolean;
  height?: number;
}

/** Render lines over time or over steps. Screen readers hear the last value of each line. */
export function Chart({ title, x, series, format = formatCompact, steps = false, bars = false, utc = false, height = 160 }: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const isDark = useIsDark();
  const shape = JSON.stringify(series.map(({ label, colour, dashed }) => [label, colour, dashed]));
  const plot = useRef<uPlot>(null);
  const latest = useRef({ x, series, format, bars });
  useEffect(() => {
    latest.current = { x, series, format, bars };
  });

  // Colours are read from the style sheet once, so that a change of the theme makes the plot anew.
  useEffect(() => {
    const element = box.current!;
    const options = { height, width: element.clientWidth, steps, bars, utc, format: (value: number) => latest.current.format(value) };
    const made = new uPlot(optionsOf(options, latest.current.series, getComputedStyle(element)), dataOf(latest.current), element);
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [isDark, shape, steps, bars, utc, height]);

  useEffect(() => plot.current?.setData(dataOf({ x, series, bars })), [x, series, bars]);

  return (
    <figure className="chart">
      <figcaption>
        <span>{title}</span>
        <span className="legend">
          {series.length > 1 &&
            series.map((line, index) => (
              <span key={index}>
                <i style={{ background: `var(${line.colour ?? "--accent"})` }} />
                {line.label}
              </span>
            ))}
        </span>
      </figcaption>
      <div ref={box} role="img" aria-label={`${title}: ${series.map((line) => spoken(line, format)).join(", ")}`} />
    </figure>
  );
}

function spoken(line: Series, format: (value: number) => string): string {
  const value = line.values.findLast((each) => each !== null);
  return `${line.label} ${value === undefined || value === null ? "none" : format(value)}`;
}

function dataOf({ x, series, bars }: Pick<ChartProps, "x" | "series" | "bars">): uPlot.AlignedData {
  const values = series.map((line) => [...line.values]);
  return [[...x], ...(bars ? stack(values).reverse() : values)];
}

/** Return the sums of each series and those before it. The last one is drawn first, so that the others stand before it. */
export function stack(values: readonly (readonly (number | null)[])[]): number[][] {
  const sums: number[][] = [];
  for (const row of values) sums.push(row.map((value, index) => (value ?? 0) + (sums.at(-1)?.[index] ?? 0)));
  return sums;
}

interface Look {
  width: number;
  height: number;
  steps: boolean;
  bars: boolean;
  utc: boolean;
  format: (value: number) => string;
}

function optionsOf(look: Look, series: readonly Series[], styles: CSSStyleDeclaration): uPlot.Options {
  const axis: uPlot.Axis = {
    stroke: resolve(styles, "--muted"),
    grid: { stroke: resolve(styles, "--border"), width: 1 },
    ticks: { show: false },
    font: `11px ${styles.getPropertyValue("--font")}`,
  };
  return {
    width: look.width,
    height: look.height,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    ...(look.utc ? { tzDate: (at: number) => uPlot.tzDate(new Date(at * 1_000), "UTC") } : {}),
    scales: { x: { time: !look.steps, ...(look.bars ? { range: rangeOfBars } : {}) }, y: { range: (_plot, low, high) => [Math.min(0, low), high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, size: 28, ...(look.steps ? {} : { values: (_plot: uPlot, splits: number[]) => timesOf(splits, look.utc) }) },
      { ...axis, size: 64, space: 36, values: (_plot, splits) => splits.map((value) => look.format(value)) },
    ],
    series: [{}, ...(look.bars ? [...series].reverse().map((line) => barsOf(line, styles)) : series.map((line) => seriesOf(line, styles)))],
  };
}

function seriesOf(line: Series, styles: CSSStyleDeclaration): uPlot.Series {
  const stroke = resolve(styles, line.colour ?? "--accent");
  return { label: line.label, stroke, width: 1.5, points: { show: false }, spanGaps: line.connected === true, ...(line.dashed ? { dash: [4, 4] } : {}) };
}

/** The share of its span that a bar fills. */
const BAR = 0.8;

function barsOf(line: Series, styles: CSSStyleDeclaration): uPlot.Series {
  const fill = resolve(styles, line.colour ?? "--accent");
  return { label: line.label, fill, width: 0, points: { show: false }, paths: uPlot.paths.bars!({ size: [BAR, Infinity], align: 1 }) };
}

/** Return the range of the horizontal axis, with the whole of the last bar. */
function rangeOfBars({ data: [x] }: uPlot, low: number, high: number): uPlot.Range.MinMax {
  return [low, high + ((x[1] ?? 0) - (x[0] ?? 0))];
}

/** Write the times of the axis: the hour where the ticks are less than a day apart, else the day. */
function timesOf(splits: readonly number[], utc: boolean): string[] {
  const step = (splits[1] ?? 0) - (splits[0] ?? 0);
  const style: Intl.DateTimeFormatOptions =
    step < 86_400 ? { hour: "2-digit", minute: "2-digit", hour12: false } : { day: "numeric", month: "short" };
  const write = new Intl.DateTimeFormat("en", utc ? { ...style, timeZone: "UTC" } : style);
  return splits.map((value) => write.format(value * 1_000));
}

/** Return a colour of the style sheet as a canvas takes it: `light-dark(…)` resolved for the theme. */
function resolve(styles: CSSStyleDeclaration, name: string): string {
  const probe = document.createElement("span");
  probe.style.color = styles.getPropertyValue(name);
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
