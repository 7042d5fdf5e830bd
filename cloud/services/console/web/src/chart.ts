// Draws a roast's curve with uPlot: BT, ET and rate of rise over the time since charge, gas and air
// as steps below, events as thin vertical lines with their temperature. Gaps are never bridged.
import uPlot from "uplot";

export interface Point {
  ts: string;
  elapsedSeconds: number;
  btC?: number;
  etC?: number;
  rorCPerMin?: number;
  gasPct?: number;
  fanPct?: number;
}

export interface Mark {
  kind: string;
  seconds: number;
  btC?: number;
}

export interface RoastEvent {
  ts: string;
  type: string;
  payload?: { elapsedSeconds?: number; btC?: number; mark?: string };
}

/** A gap of more seconds than this between samples interrupts the line. */
const GAP_S = 15;
const LETTERS: Record<string, string> = {
  CHARGE: "C", TP: "TP", DRY_END: "D", FC: "F", FC_END: "Fe", SC: "S", SC_END: "Se", DROP: "X", COOL_END: "Ce",
};

type Column = (number | null)[];

export function markOf(event: RoastEvent): Mark | null {
  const kind = event.payload?.mark ?? event.type;
  const seconds = event.payload?.elapsedSeconds;
  if (seconds === undefined || !(kind in LETTERS)) return null;
  return { kind, seconds, btC: event.payload?.btC };
}

export function clock(seconds: number): string {
  const sign = seconds < 0 ? "-" : "";
  const s = Math.abs(Math.round(seconds));
  return `${sign}${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;
}

export class RoastChart {
  private columns: [number[], Column, Column, Column, Column, Column] = [[], [], [], [], [], []];
  private marks: Mark[] = [];
  private plot: uPlot;
  private dirty = false;
  /** The second up to which a replay shows the curve; `null` shows all of it. */
  until: number | null = null;

  constructor(private host: HTMLElement, private spanAtLeast = 60) {
    this.plot = this.create();
    new ResizeObserver(() => this.plot.setSize(this.size())).observe(host);
    document.addEventListener("theme", () => this.recreate());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recreate());
  }

  add(point: Point): void {
    const [x, ...series] = this.columns;
    const last = x.length ? x[x.length - 1] : -Infinity;
    if (point.elapsedSeconds <= last) return; // a duplicate: a resumed stream repeats some points
    if (point.elapsedSeconds - last > GAP_S && x.length) {
      x.push(last + 0.001);
      for (const column of series) column.push(null);
    }
    x.push(point.elapsedSeconds);
    const values = [point.btC, point.etC, point.rorCPerMin, point.gasPct, point.fanPct];
    series.forEach((column, i) => column.push(values[i] ?? null));
    this.draw();
  }

  mark(mark: Mark): void {
    if (this.marks.some((m) => m.kind === mark.kind && m.seconds === mark.seconds)) return;
    this.marks.push(mark);
    this.draw();
  }

  clear(): void {
    for (const column of this.columns) column.length = 0;
    this.marks = [];
    this.draw();
  }

  get last(): number {
    const x = this.columns[0];
    return x.length ? x[x.length - 1] : 0;
  }

  /** Returns the newest sample at or before a time. */
  at(seconds: number): { bt: number | null; et: number | null; ror: number | null } {
    const [x, bt, et, ror] = this.columns;
    let low = 0, high = x.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (x[middle] <= seconds) low = middle + 1; else high = middle;
    }
    const i = low - 1;
    return { bt: bt[i] ?? null, et: et[i] ?? null, ror: ror[i] ?? null };
  }

  marksUntil(seconds: number): Mark[] {
    return this.marks.filter((m) => m.seconds <= seconds);
  }

  /** Schedules a redraw: at most one per animation frame, however many samples arrive. */
  draw(): void {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => {
      this.dirty = false;
      this.plot.setData(this.visible(), true);
    });
  }

  private visible(): uPlot.AlignedData {
    if (this.until === null) return this.columns;
    const until = this.until;
    let end = this.columns[0].findIndex((x) => x > until);
    if (end < 0) end = this.columns[0].length;
    return this.columns.map((c) => c.slice(0, end)) as unknown as uPlot.AlignedData;
  }

  private size(): { width: number; height: number } {
    const legend = this.host.querySelector<HTMLElement>(".u-legend")?.offsetHeight ?? 30;
    return { width: this.host.clientWidth, height: Math.max(240, this.host.clientHeight - legend) };
  }

  private recreate(): void {
    this.plot.destroy();
    this.plot = this.create();
    this.draw();
  }

  private create(): uPlot {
    const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const ink = css("--ink"), quiet = css("--quiet"), rule = css("--rule");
    const grid = { stroke: rule, width: 1 };
    const font = "12px system-ui, sans-serif";
    const degrees = (_: uPlot, v: number | null) => (v === null ? "—" : v.toFixed(1));
    const percent = (_: uPlot, v: number | null) => (v === null ? "—" : `${v.toFixed(0)} %`);
    const steps = uPlot.paths.stepped?.({ align: 1 });
    const axis = { stroke: quiet, grid, ticks: grid, font };
    const narrow = this.host.clientWidth < 640;
    return new uPlot({
      ...this.size(),
      // Dragging zooms; a double click resets the zoom.
      cursor: { drag: { x: true, y: false, uni: 20 }, points: { size: 6 } },
      scales: {
        x: { time: false, range: (_, min, max) => [Math.min(min ?? 0, 0), Math.max(max ?? 0, this.spanAtLeast)] },
        temperature: { range: (_, __, max) => [0, Math.max(250, (max ?? 0) + 10)] },
        rise: { range: [-20, 40] },
        control: { range: [0, 420] },
      },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map(clock), space: 64 },
        { ...axis, scale: "temperature", label: narrow ? undefined : "°C", labelFont: font, size: narrow ? 36 : 48 },
        { ...axis, scale: "rise", side: 1, grid: { show: false }, label: narrow ? undefined : "°C/min", labelFont: font, size: narrow ? 40 : 48 },
      ],
      series: [
        { label: "Time", value: (_, v) => (v === null ? "—" : clock(v)) },
        { label: "BT", scale: "temperature", stroke: css("--bt"), width: 2.5, value: degrees },
        { label: "ET", scale: "temperature", stroke: css("--et"), width: 1.5, value: degrees },
        { label: "RoR", scale: "rise", stroke: css("--ror"), width: 1.5, value: degrees },
        { label: "Gas", scale: "control", stroke: css("--gas"), width: 1, paths: steps, value: percent },
        { label: "Air", scale: "control", stroke: css("--fan"), width: 1, paths: steps, dash: [4, 3], value: percent },
      ],
      hooks: { draw: [(u) => this.drawMarks(u, ink, quiet)] },
    }, this.visible(), this.host);
  }

  private drawMarks(u: uPlot, ink: string, quiet: string): void {
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    for (const mark of this.marks) {
      if (this.until !== null && mark.seconds > this.until) continue;
      const x = Math.round(u.valToPos(mark.seconds, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = quiet;
      ctx.lineWidth = ratio;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillStyle = ink;
      ctx.fillText(LETTERS[mark.kind], x + 4 * ratio, bbox.top + 14 * ratio);
      if (mark.btC !== undefined) {
        const y = u.valToPos(mark.btC, "temperature", true);
        ctx.fillText(mark.btC.toFixed(0), x + 4 * ratio, y - 6 * ratio);
      }
    }
    ctx.restore();
  }
}

/** Renders the phases between events in the strip above the chart. */
export function showPhases(strip: HTMLElement, marks: Mark[], seconds: number): void {
  const at = (kind: string) => marks.find((m) => m.kind === kind)?.seconds;
  const end = at("DROP") ?? seconds;
  const limits: [string, number | undefined][] = [["Drying", at("DRY_END")], ["Maillard", at("FC")], ["Development", undefined]];
  const parts: HTMLElement[] = [];
  let start = 0;
  for (const [name, limit] of limits) {
    const stop = Math.min(limit ?? end, end);
    if (end <= 0 || stop < start) break;
    const share = ((stop - start) / end) * 100;
    const part = document.createElement("div");
    part.style.flexGrow = String(Math.max(share, 0.1));
    part.style.flexBasis = "0";
    part.textContent = `${name} ${clock(stop - start)} · ${share.toFixed(0)} %`;
    part.title = part.textContent;
    parts.push(part);
    if (limit === undefined || limit >= end) break;
    start = stop;
  }
  strip.replaceChildren(...parts);
}
