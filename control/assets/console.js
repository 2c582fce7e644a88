// Keeps the live part of a page fresh, and asks for previews while a form is filled in. Every page works without it.
"use strict";

const FOCUSABLE = "a[href], button, input, select, textarea, [tabindex]";
const FIELDS = "input, select, textarea";
/** Milliseconds after which a page that does not come is missing. */
const PATIENCE = 15000;

/** The page at that address; null: nobody is signed in any more, and the browser leaves. */
async function load(address, options) {
  const answer = await fetch(address, { credentials: "same-origin", ...options });
  if (answer.redirected && new URL(answer.url).pathname === "/console/sign-in") {
    location.assign(`/console/sign-in?to=${encodeURIComponent(location.pathname + location.search)}`);
    return null;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  return { status: answer.status, page };
}

/** What the keyboard reaches in a part, by names that the same things have in a newer version of it. */
function reached(part) {
  const all = new Map();
  const many = new Map();
  for (const element of part.querySelectorAll(FOCUSABLE)) {
    const own = element.id || element.dataset.key || element.getAttribute("href") || element.getAttribute("aria-label")
      || (element.matches("button") ? element.textContent : "");
    const name = `${element.tagName} ${own}`;
    const nth = many.get(name) || 0;
    many.set(name, nth + 1);
    all.set(`${name} ${nth}`, element);
  }
  return all;
}

/** Puts what is in the part of that id of a page in place of what is in ours. Who uses it by keyboard keeps their place. */
function put(id, page) {
  const [next, ours] = [page.getElementById(id), document.getElementById(id)];
  // What did not change stays, so that nothing is read aloud again.
  if (!next || !ours || next.innerHTML === ours.innerHTML) return;
  const before = reached(ours);
  const names = [...before.keys()];
  const focused = names.findIndex((name) => before.get(name) === document.activeElement);
  const scrolled = names.map((name) => [name, before.get(name).scrollLeft, before.get(name).scrollTop]);
  ours.replaceChildren(...next.childNodes);
  const after = reached(ours);
  for (const [name, left, top] of scrolled) {
    if ((left || top) && after.has(name)) after.get(name).scrollTo(left, top);
  }
  if (focused < 0) return;
  // What is gone gives way to what is at its place now.
  const rest = [...after.values()];
  const heir = after.get(names[focused]) || rest[Math.min(focused, rest.length - 1)] || document.getElementById("content");
  heir.focus({ preventScroll: true });
}

/** Somebody fills in a field of a part: its text is not what came with the page, or the keyboard is in it. */
function typedIn(part) {
  return [...part.querySelectorAll(FIELDS)].some((field) => field === document.activeElement
    || (field.type !== "hidden" && field.defaultValue !== undefined && field.value !== field.defaultValue));
}

const live = document.getElementById("live");
if (live) {
  const freshness = document.getElementById("freshness");
  const say = (words) => { if (freshness.textContent !== words) freshness.textContent = words; };
  let seen = new Date();
  let due = false;
  let running = false;
  let events = null;

  const ask = async () => {
    const since = seen.toLocaleTimeString();
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(), PATIENCE);
    try {
      const answer = await load(location.href, { signal: patience.signal });
      if (!answer) return;
      // A page that says what is wrong with a filter has its live part; one that says why there is nothing has none.
      if (answer.status >= 500 || !answer.page.getElementById("live")) {
        say(`Not fresh since ${since}: the answer was ${answer.status}`);
      } else if (typedIn(live)) {
        say("Paused while you type");
      } else {
        put("live", answer.page);
        seen = new Date();
        say("Live");
        // After an answer that is none, browsers do not listen again by themselves.
        if (events && events.readyState === EventSource.CLOSED) listen();
      }
    } catch {
      say(`Not reached since ${since}`);
    } finally {
      clearTimeout(timer);
    }
  };
  const refresh = async () => {
    if (running) { due = true; return; }
    running = true;
    await ask();
    running = false;
    if (due) { due = false; setTimeout(refresh, 300); }
  };
  const listen = () => {
    events = new EventSource("/console/events");
    for (const kind of ["reset", "node.joined", "node.moved", "node.left", "cluster.created", "cluster.updated",
      "cluster.deleted", "flight.began", "flight.ended", "preheat.began", "preheat.ended"]) events.addEventListener(kind, refresh);
  };
  // Over HTTP/1.1 a browser has six connections to a host for all its tabs: one that nobody looks at holds none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      if (events) events.close();
      events = null;
      say("");
    } else {
      if (!events) listen();
      refresh();
    }
  });
  if (!document.hidden) listen();
  setInterval(() => { if (!document.hidden) refresh(); }, Number(live.dataset.every) * 1000);
}

for (const form of document.querySelectorAll("form[data-live]")) {
  let timer = 0;
  let asking = null;
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (asking) asking.abort();
      const mine = new AbortController();
      asking = mine;
      const fields = new URLSearchParams(new FormData(form));
      fields.set("do", "preview");
      const address = form.getAttribute("action");
      const how = form.method === "get" ? {} : { method: "POST", body: fields };
      try {
        const answer = await load(form.method === "get" ? `${address}?${fields}` : address, { ...how, signal: mine.signal });
        // The answer to what is written now, and to nothing older.
        if (answer && mine === asking) put(form.dataset.live, answer.page);
      } catch { /* The next key asks again. */ }
    }, 250);
  });
}
