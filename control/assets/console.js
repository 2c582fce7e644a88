// Keeps the live part of a page fresh, and asks for previews while a form is filled in. Every page works without it.
"use strict";

/** Puts the part of that id from the page at that address in place of ours. */
async function replace(id, address, options) {
  const answer = await fetch(address, { credentials: "same-origin", ...options });
  if (answer.redirected && new URL(answer.url).pathname === "/console/sign-in") {
    location.assign("/console/sign-in");
    return false;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const [next, ours] = [page.getElementById(id), document.getElementById(id)];
  if (!next || !ours) return false;
  // Whoever reads or uses a part of it with the keyboard keeps their place.
  if (id === "live" && ours.contains(document.activeElement)) return false;
  ours.replaceChildren(...next.childNodes);
  return true;
}

const live = document.getElementById("live");
if (live) {
  const freshness = document.getElementById("freshness");
  let due = false;
  let running = false;
  const refresh = async () => {
    if (running) { due = true; return; }
    running = true;
    try {
      await replace("live", location.href, {});
      if (freshness.textContent !== "Live") freshness.textContent = "Live";
    } catch {
      freshness.textContent = "No connection: this page is not live now";
    }
    running = false;
    if (due) { due = false; setTimeout(refresh, 300); }
  };
  const events = new EventSource("/console/events");
  for (const kind of ["reset", "node.joined", "node.moved", "node.left", "cluster.created", "cluster.updated",
    "cluster.deleted", "flight.began", "flight.ended"]) events.addEventListener(kind, refresh);
  setInterval(refresh, Number(live.dataset.every) * 1000);
}

for (const form of document.querySelectorAll("form[data-live]")) {
  let timer = 0;
  let asked = 0;
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const mine = ++asked;
      const fields = new URLSearchParams(new FormData(form));
      fields.set("do", "preview");
      const address = form.getAttribute("action");
      const get = form.method === "get";
      try {
        if (mine !== asked) return;
        await replace(form.dataset.live, get ? `${address}?${fields}` : address, get ? {} : { method: "POST", body: fields });
      } catch { /* The next key asks again. */ }
    }, 250);
  });
}
