// Keeps a page current while somebody looks at it. Pages are whole without it: it only asks for the same page again and puts in what changed.
"use strict";
(() => {
  const REST_MS = 1000; // Between two refreshes: a farm may have thousands of events a second.
  const ASK_MS = 5000; // Between two questions where no events come.
  const GROW_MS = 1000; // Between two questions for more of a log.
  const status = document.getElementById("live");
  const build = location.pathname.match(/^\/ui\/builds\/(\d+)$/)?.[1];
  const url = document.body.dataset.events && document.body.dataset.events + (build ? `?build=${build}` : "");
  let source = null, timer = 0, asking = false, again = false, growing = false;

  const say = (words) => { if (status && status.textContent !== words) status.textContent = words; };

  // Puts in what changed of the parts that are marked as live. What somebody is in the middle of stays: a field with focus, an open detail.
  const put = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = old.id && fresh.getElementById(old.id);
      if (!next || next.isEqualNode(old)) continue;
      const focus = old.contains(document.activeElement) ? document.activeElement : null;
      if (focus && focus.matches("input, select, textarea")) continue;
      const open = new Set([...old.querySelectorAll("details[open][id]")].map((d) => d.id));
      const scrolls = new Map([...old.querySelectorAll("[id].scroll, [id].drawbox")].map((e) => [e.id, e.scrollLeft]));
      const place = focus && [...old.querySelectorAll("a, button, [tabindex]")].indexOf(focus);
      old.replaceWith(next);
      for (const id of open) next.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
      for (const [id, left] of scrolls) { const e = document.getElementById(id); if (e) e.scrollLeft = left; }
      if (focus) [...next.querySelectorAll("a, button, [tabindex]")][place]?.focus({ preventScroll: true });
    }
  };

  // The log grows at its end. `data-next` says from where, and what its colours are there.
  const grow = async () => {
    const log = document.querySelector("[data-next]");
    if (!log || growing || document.hidden) return;
    growing = true;
    const answer = await fetch(log.dataset.next, { headers: { accept: "text/html" } }).catch(() => null);
    growing = false;
    if (!answer?.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("log-lines");
    if (!fresh) return;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const list = log.querySelector("ol");
    list.append(...fresh.querySelectorAll("li"));
    while (list.children.length > 5000) list.firstElementChild.remove();
    // A log that is complete names nothing that follows.
    if (fresh.dataset.next) log.dataset.next = fresh.dataset.next; else log.removeAttribute("data-next");
    if (atEnd) log.scrollTop = log.scrollHeight;
  };

  const refresh = async () => {
    if (document.hidden) return;
    if (asking) { again = true; return; }
    asking = true;
    try {
      if (document.querySelector("[data-live]")) {
        const here = new URL(location.href);
        here.searchParams.set("part", "main");
        const answer = await fetch(here, { headers: { accept: "text/html" } });
        if (!answer.ok) throw new Error(String(answer.status));
        put(await answer.text());
        const at = answer.headers.get("x-kiln-now"), time = document.getElementById("as-of");
        if (at && time) time.textContent = at;
      }
      say("live");
    } catch (error) {
      say("not current: the farm does not answer; asking again");
    }
    asking = false;
    if (again) { again = false; soon(); }
  };

  const soon = () => { if (!timer) timer = setTimeout(() => { timer = 0; refresh(); }, REST_MS); };

  const open = () => {
    if (!url || source || document.hidden) return;
    // The browser sends Last-Event-ID by itself when a stream breaks. A pause of ours ends with a look at the whole page, which misses nothing.
    source = new EventSource(url);
    for (const name of ["message", "job", "build", "worker", "leader", "many", "resync"]) source.addEventListener(name, soon);
    source.onerror = () => { if (source && source.readyState === EventSource.CLOSED) source = null; };
  };
  const close = () => { source?.close(); source = null; };

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); say("paused"); } else { open(); refresh(); }
  });
  setInterval(() => { if (!document.hidden) { open(); refresh(); } }, ASK_MS);
  setInterval(grow, GROW_MS);

  // Ctrl with the wheel, or + and -, zooms a timeline about the middle; a drag picks a stretch. Both only go to an address that a link could hold.
  const gantt = document.querySelector("svg[data-from]");
  if (gantt) {
    const from = Number(gantt.dataset.from), to = Number(gantt.dataset.to), left = Number(gantt.dataset.left);
    const go = (a, b) => {
      const here = new URL(location.href);
      here.searchParams.set("from", Math.round(a)); here.searchParams.set("to", Math.round(b));
      location.assign(here);
    };
    const at = (event) => {
      const box = gantt.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * gantt.viewBox.baseVal.width;
      return from + ((Math.max(x, left) - left) / (gantt.viewBox.baseVal.width - left)) * (to - from);
    };
    let start = null;
    gantt.addEventListener("pointerdown", (event) => { if (event.button === 0) start = { x: event.clientX, at: at(event) }; });
    window.addEventListener("pointerup", (event) => {
      if (start && Math.abs(event.clientX - start.x) > 12) { const end = at(event); go(Math.min(start.at, end), Math.max(start.at, end)); }
      start = null;
    });
    gantt.addEventListener("dragstart", (event) => event.preventDefault());
  }
  const log = document.querySelector(".log[data-next]");
  if (log && !location.hash.startsWith("#L")) log.scrollTop = log.scrollHeight;
  open();
})();
