// The live page of a machine: updates the values four times a second and the curve once per
// animation frame, and always shows when the values are old.
import { clock, markOf, Point, RoastChart, RoastEvent, showPhases } from "./chart";

interface Envelope<T> {
  payload: T;
  sessionId?: string;
}

/** Values older than this are shown as delayed, then as stale: stale values are hidden. */
const DELAYED_MS = 5_000;
const STALE_MS = 15_000;
const SHOW_MS = 250;

const page = document.querySelector<HTMLElement>("#live");
if (page) start(page);

function start(page: HTMLElement): void {
  const { site = "", machine = "" } = page.dataset;
  const query = `siteId=${encodeURIComponent(site)}&machineId=${encodeURIComponent(machine)}`;
  const find = (id: string) => page.querySelector<HTMLElement>(`#${id}`)!;
  const chart = new RoastChart(find("chart"), 120);
  let session = page.dataset.session ?? "";
  let newest: Point | null = null;
  let arrived = page.dataset.session ? 0 : Date.now();
  let lost = false;

  const take = (point: Point) => {
    newest = point;
    arrived = Date.now();
    chart.add(point);
  };

  async function load(): Promise<void> {
    if (!session) return;
    const at = `/api/sessions/${encodeURIComponent(session)}`;
    const [points, events] = await Promise.all([
      fetch(`${at}/telemetry?limit=50000`).then((r) => r.json() as Promise<Point[]>),
      fetch(`${at}/events`).then((r) => r.json() as Promise<RoastEvent[]>),
    ]);
    chart.clear();
    for (const point of points) chart.add(point);
    for (const event of events) note(event);
    newest = points.at(-1) ?? newest;
    if (newest) arrived = Math.max(arrived, Math.min(Date.now(), Date.parse(newest.ts)));
  }

  function note(event: RoastEvent): void {
    const mark = markOf(event);
    if (mark) chart.mark(mark);
  }

  const telemetry = new EventSource(`/stream/envelopes/telemetry?${query}`);
  telemetry.addEventListener("telemetry", (message) => {
    const envelope = JSON.parse(message.data) as Envelope<Point>;
    const now = envelope.sessionId ?? "";
    if (now && now !== session) {
      session = now;
      chart.clear();
      void load();
    } else if (now === session && session) take(envelope.payload);
    else { newest = envelope.payload; arrived = Date.now(); }
    page.dataset.running = now ? "yes" : "";
  });
  telemetry.onerror = () => { lost = true; };
  telemetry.onopen = () => { if (lost) { lost = false; void load(); } };
  const events = new EventSource(`/stream/envelopes/events?${query}`);
  events.addEventListener("roastEvent", (message) => {
    const envelope = JSON.parse(message.data) as Envelope<RoastEvent>;
    if (envelope.sessionId === session) note(envelope.payload);
  });

  const put = (id: string, value: number | undefined | null, digits = 1) => {
    find(id).textContent = value === undefined || value === null ? "—" : value.toFixed(digits);
  };
  function show(): void {
    const age = Date.now() - arrived;
    const stale = !newest || age > STALE_MS;
    const running = page.dataset.running === "yes" && session !== "";
    const shown = stale ? null : newest;
    put("bt", shown?.btC);
    put("et", shown?.etC);
    put("ror", shown?.rorCPerMin);
    put("gas", shown?.gasPct, 0);
    put("fan", shown?.fanPct, 0);
    const since = running && newest ? newest.elapsedSeconds : null;
    find("since").textContent = since === null ? "—" : clock(since);
    page.classList.toggle("aged", age > DELAYED_MS);
    const state = find("state");
    const [name, word] = stale ? ["stale", newest ? `Stale: no sample for ${Math.round(age / 1000)} s` : "Waiting for a sample"]
      : age > DELAYED_MS ? ["delayed", `Delayed ${Math.round(age / 1000)} s`]
      : running ? ["roasting", "Roasting"] : ["idle", "Between roasts"];
    state.className = `state ${name}`;
    state.textContent = word;
    find("offline").hidden = !lost;
    showPhases(find("phases"), chart.marksUntil(Infinity), chart.last);
  }
  setInterval(show, SHOW_MS);
  void load().then(show);
}
