"use strict";
// Sorting, details and tooltips of the tables. Texts are only ever set as text, never as HTML.
(() => {
  document.documentElement.classList.remove("plain"); // from here on the page is more than a document
  const table = document.getElementById("score-table");

  function valueOf(body, column) {
    const cell = body.rows[0].cells[column];
    const text = cell && cell.colSpan === 1 ? cell.dataset.value || "" : "";
    const number = Number(text);
    return text === "" ? null : Number.isNaN(number) ? text : number;
  }

  function compare(one, other, sign) {
    if (one === null || other === null) return (one === null) - (other === null); // missing values last, either way
    return sign * (typeof one === "string" ? one.localeCompare(other) : one - other);
  }

  function sortBy(heading) {
    const column = [...heading.parentNode.cells].indexOf(heading);
    const now = heading.getAttribute("aria-sort");
    const next = now ? (now === "ascending" ? "descending" : "ascending") : heading.querySelector("button").dataset.first;
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    // Methods that were given the labels, and failed ones, are sorted among themselves and stay below.
    for (const section of ["ranked", "labels", "failed"]) {
      const bodies = [...table.tBodies].filter((body) => body.dataset.section === section);
      if (bodies.length < 2) continue;
      const anchor = bodies[bodies.length - 1].nextSibling;
      const keyed = bodies.map((body) => ({ body, key: valueOf(body, column) }));
      keyed.sort((one, other) => compare(one.key, other.key, sign));
      for (const { body } of keyed) table.insertBefore(body, anchor);
    }
  }

  if (table) {
    table.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.classList.contains("more")) {
        const open = button.getAttribute("aria-expanded") !== "true";
        button.setAttribute("aria-expanded", String(open));
        document.getElementById(button.getAttribute("aria-controls")).hidden = !open;
      } else if (button.dataset.first) {
        sortBy(button.closest("th"));
      }
    });
  }

  const tip = document.getElementById("tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 16 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 16}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  const holder = (event) => (event.target.closest ? event.target.closest("[data-tip]") : null);
  document.addEventListener("mousemove", (event) => {
    if (event.target.closest(".plot")) return;
    const element = holder(event);
    if (element) showTip(element.dataset.tip, event.clientX, event.clientY);
    else hideTip();
  });
  document.addEventListener("focusin", (event) => {
    const element = event.target.matches(":focus-visible") ? holder(event) : null;
    if (!element) return hideTip();
    const box = element.getBoundingClientRect();
    showTip(element.dataset.tip, box.left, box.bottom - 10);
  });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", hideTip, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  window.tenfoldTip = { show: showTip, hide: hideTip };
})();
