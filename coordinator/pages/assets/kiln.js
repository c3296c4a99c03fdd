// Keeps a page current while somebody looks at it. Pages are whole without it: it only asks for the same page again and puts in what changed.
"use strict";
(() => {
  const REST_MS = 1000; // Between two refreshes, and up to as much more: a farm may have thousands of events a second, and hundreds who look.
  const ASK_MS = 5000; // Between two questions where no events come.
  const GROW_MS = 500; // Between two questions for more of a log.
  const ASKED_MS = 10000; // How long an answer may take.
  const status = document.getElementById("live");
  const build = location.pathname.match(/^\/ui\/builds\/(\d+)$/)?.[1];
  const url = document.body.dataset.events && document.body.dataset.events + (build ? `?build=${build}` : "");
  let source = null, timer = 0, asking = false, again = false, growing = false, pressed = false;

  const say = (words) => { if (status && status.textContent !== words) status.textContent = words; };

  const ask = async (address) => {
    const answer = await fetch(address, { headers: { accept: "text/html" }, signal: AbortSignal.timeout(ASKED_MS) });
    if (!answer.ok) throw Object.assign(new Error(answer.statusText), { status: answer.status });
    return { answer, text: await answer.text() };
  };

  const trouble = (status) => {
    if (status === 401 || status === 403) return "not current: log in again";
    if (status === 404) return "not current: this is no longer there";
    if (status === 429) return "not current: the coordinator is busy; asking again";
    return "not current: the farm does not answer; asking again";
  };

  // What an element is, wherever it stands: a place in a list may be another worker's a moment later.
  const identity = (element) => {
    const said = element.form && [...element.form.elements].filter((e) => e.type === "hidden").map((e) => e.value).join(" ");
    return [element.tagName, element.id, element.getAttribute("href"), said, element.form?.getAttribute("action")].join("|");
  };

  // Puts in what changed of the parts that are marked as live. What somebody is in the middle of stays: a field with focus, a selection, a
  // drag, an open or closed detail.
  const put = (text) => {
    if (pressed) return;
    const fresh = new DOMParser().parseFromString(text, "text/html"), selection = getSelection();
    const isSelected = (node) => selection && !selection.isCollapsed && (node.contains(selection.anchorNode) || node.contains(selection.focusNode));
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = old.id && fresh.getElementById(old.id);
      if (!next || next.isEqualNode(old) || isSelected(old)) continue;
      const focus = old.contains(document.activeElement) ? document.activeElement : null;
      if (focus && focus.matches("input, select, textarea")) continue;
      const details = new Map([...old.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
      const scrolls = new Map([...old.querySelectorAll("[id].scroll, [id].drawbox")].map((e) => [e.id, e.scrollLeft]));
      old.replaceWith(next);
      for (const detail of next.querySelectorAll("details[id]")) detail.open = details.get(detail.id) ?? detail.open;
      for (const [id, left] of scrolls) { const e = document.getElementById(id); if (e) e.scrollLeft = left; }
      if (focus) {
        const wanted = identity(focus);
        [...next.querySelectorAll(focus.tagName)].find((e) => identity(e) === wanted)?.focus({ preventScroll: true });
      }
    }
  };

  // The log grows at its end. `data-next` says from where, and what its colours are there.
  const grow = async () => {
    const log = document.querySelector("[data-next]");
    if (!log || growing || document.hidden) return;
    growing = true;
    try {
      const { text } = await ask(log.dataset.next);
      const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("log-lines");
      if (!fresh) return;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      const list = log.querySelector("ol");
      list.append(...fresh.querySelectorAll("li"));
      while (list.children.length > 5000) list.firstElementChild.remove();
      // A log that is complete names nothing that follows.
      if (fresh.dataset.next) log.dataset.next = fresh.dataset.next; else log.removeAttribute("data-next");
      if (atEnd) log.scrollTop = log.scrollHeight;
    } catch {
      // The page says by itself that it is not current; the next second asks again.
    } finally {
      growing = false;
    }
  };

  const refresh = async () => {
    if (document.hidden) return;
    if (asking) { again = true; return; }
    asking = true;
    try {
      if (document.querySelector("[data-live]")) {
        const here = new URL(location.href);
        here.searchParams.set("part", "main");
        // A log that is there grows by itself; one that is not there so far is asked for with the rest.
        if (!document.getElementById("log-lines")) here.searchParams.set("log", "1");
        const { answer, text } = await ask(here);
        put(text);
        const at = answer.headers.get("x-kiln-now"), time = document.getElementById("as-of");
        if (at && time) time.textContent = at;
      }
      say("live");
    } catch (error) {
      say(trouble(error.status));
    } finally {
      asking = false;
    }
    if (again) { again = false; soon(); }
  };

  const soon = () => { if (!timer) timer = setTimeout(() => { timer = 0; refresh(); }, REST_MS * (1 + Math.random())); };

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

  // A drag over a timeline picks a stretch: it goes to an address that a link could hold.
  // The drawing is another one after each refresh: the page listens, not the drawing.
  const drawn = (event) => event.target instanceof Element ? event.target.closest("svg[data-from]") : null;
  const at = (gantt, x) => {
    const from = Number(gantt.dataset.from), to = Number(gantt.dataset.to), left = Number(gantt.dataset.left), width = gantt.viewBox.baseVal.width;
    const box = gantt.getBoundingClientRect(), place = ((x - box.left) / box.width) * width;
    return from + ((Math.min(Math.max(place, left), width) - left) / (width - left)) * (to - from);
  };
  let start = null;
  document.addEventListener("pointerdown", (event) => {
    pressed = true;
    const gantt = event.button === 0 ? drawn(event) : null;
    start = gantt && { gantt, x: event.clientX };
  });
  document.addEventListener("pointerup", (event) => {
    pressed = false;
    if (start && Math.abs(event.clientX - start.x) > 12) {
      const ends = [at(start.gantt, start.x), at(start.gantt, event.clientX)], here = new URL(location.href);
      here.searchParams.set("from", Math.round(Math.min(...ends)));
      here.searchParams.set("to", Math.round(Math.max(...ends)));
      location.assign(here);
    }
    start = null;
  });
  document.addEventListener("pointercancel", () => { pressed = false; start = null; });
  document.addEventListener("dragstart", (event) => { if (drawn(event)) event.preventDefault(); else { pressed = false; start = null; } });
  const log = document.querySelector(".log[data-next]");
  if (log && !location.hash.startsWith("#L")) log.scrollTop = log.scrollHeight;
  open();
})();
