// The page of a session: the whole curve, and controls to replay it.
import { clock, markOf, Point, RoastChart, RoastEvent, showPhases } from "./chart";

const page = document.querySelector<HTMLElement>("#replay");
if (page) void start(page);

async function start(page: HTMLElement): Promise<void> {
  const find = <T extends HTMLElement>(id: string) => page.querySelector<T>(`#${id}`)!;
  const at = `/api/sessions/${encodeURIComponent(page.dataset.session ?? "")}`;
  const notice = find("failed");
  const chart = new RoastChart(find("chart"));
  try {
    const [points, events] = await Promise.all([
      fetch(`${at}/telemetry?limit=100000`).then((r) => (r.ok ? r.json() as Promise<Point[]> : Promise.reject(r.status))),
      fetch(`${at}/events`).then((r) => (r.ok ? r.json() as Promise<RoastEvent[]> : Promise.reject(r.status))),
    ]);
    for (const point of points) chart.add(point);
    for (const mark of events.map(markOf)) if (mark) chart.mark(mark);
  } catch (reason) {
    notice.hidden = false;
    notice.textContent = `The curve could not be read (${String(reason)}). Nothing is lost; reload the page.`;
    return;
  }
  const scrub = find<HTMLInputElement>("scrub"), play = find<HTMLButtonElement>("play"), speed = find<HTMLSelectElement>("speed");
  const end = chart.last;
  scrub.max = String(end);
  scrub.value = String(end);
  let playing = false, before = 0;

  function show(seconds: number): void {
    chart.until = seconds >= end ? null : seconds;
    chart.draw();
    const { bt, et, ror } = chart.at(seconds);
    const text = (v: number | null) => (v === null ? "—" : v.toFixed(1));
    find("bt").textContent = text(bt);
    find("et").textContent = text(et);
    find("ror").textContent = text(ror);
    find("since").textContent = clock(seconds);
    showPhases(find("phases"), chart.marksUntil(seconds), seconds);
  }

  function step(now: number): void {
    if (!playing) return;
    const next = Math.min(end, Number(scrub.value) + ((now - before) / 1000) * Number(speed.value));
    before = now;
    scrub.value = String(next);
    show(next);
    if (next >= end) toggle(false); else requestAnimationFrame(step);
  }

  function toggle(on: boolean): void {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    if (!on) return;
    if (Number(scrub.value) >= end) scrub.value = "0";
    before = performance.now();
    requestAnimationFrame(step);
  }

  play.addEventListener("click", () => toggle(!playing));
  scrub.addEventListener("input", () => show(Number(scrub.value)));
  show(end);
}
