// What a page lacks for people who see little or use no mouse, as a list of sentences.
const lacks = [];
const said = (element) => `${element.tagName.toLowerCase()} ${JSON.stringify((element.innerText || element.name || "").slice(0, 40))}`;
if (!document.documentElement.lang) lacks.push("the page says no language");
if (document.querySelectorAll("h1").length !== 1) lacks.push("the page has not one h1");
if (!document.title) lacks.push("the page has no title");
for (const field of document.querySelectorAll("input:not([type=hidden], [hidden]), select, textarea")) {
  if (!field.labels || field.labels.length === 0) lacks.push(`no label: ${said(field)}`);
  for (const id of (field.getAttribute("aria-describedby") || "").split(" ").filter(Boolean)) {
    if (!document.getElementById(id)) lacks.push(`described by nothing: ${said(field)}`);
  }
}
for (const element of document.querySelectorAll("a, button")) {
  if (!element.innerText.trim() && !element.getAttribute("aria-label")) lacks.push(`no words: ${element.outerHTML.slice(0, 80)}`);
}
for (const picture of document.querySelectorAll("svg, img, progress")) {
  if (picture.closest("[aria-hidden=true]")) continue;
  if (!picture.getAttribute("aria-label") && !picture.getAttribute("alt")) lacks.push(`no name: ${picture.outerHTML.slice(0, 80)}`);
}
for (const table of document.querySelectorAll("table")) {
  if (!table.caption) lacks.push("a table without a caption");
  if (table.querySelector("thead th:not([scope])")) lacks.push("a header cell without a scope");
}
const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) lacks.push(`two of id ${id}`);
// Contrast, by WCAG 2.2, 1.4.3: 4.5 to 1.
const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const light = (color) => {
  const [r, g, b] = color.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = parse(getComputedStyle(at).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color.slice(0, 3);
  }
  return [255, 255, 255];
};
const poor = new Set();
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || element.offsetParent === null) continue;
  const front = parse(getComputedStyle(element).color).slice(0, 3);
  const [a, b] = [light(front), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) poor.add(`contrast ${ratio.toFixed(2)}: ${said(element)}`);
}
if (document.documentElement.scrollWidth > document.documentElement.clientWidth) lacks.push("the page is wider than the window");
return [...lacks, ...poor];
