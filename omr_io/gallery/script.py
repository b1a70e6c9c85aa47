"""The gallery's script: filters and search over what the page already shows.

It reads text nodes and data attributes, and writes only `hidden`, form values, text and the
address' fragment: nothing from the data ever becomes markup or code.
"""

SCRIPT = r"""
(() => {
  "use strict";
  const form = document.getElementById("filters");
  const count = document.getElementById("count");
  const empty = document.getElementById("empty");
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const cards = Array.from(document.querySelectorAll("article.sample"), (node) => ({
    node,
    options: node.dataset.options,
    answer: node.dataset.answer,
    formats: node.dataset.formats.split(" "),
    rubric: node.dataset.rubric,
    text: fold(
      Array.from(node.querySelectorAll("[data-search]"), (part) => part.textContent).join("\n")
    ),
  }));
  const names = ["q", "options", "answer", "format"];

  function apply() {
    const words = fold(form.elements.q.value).split(/\s+/).filter(Boolean);
    const { options, answer, format, rubric } = form.elements;
    let shown = 0;
    for (const card of cards) {
      const fits =
        words.every((word) => card.text.includes(word)) &&
        (!options.value || card.options === options.value) &&
        (!answer.value || card.answer === answer.value) &&
        (!format.value || card.formats.includes(format.value)) &&
        (!rubric.checked || card.rubric === "1");
      card.node.hidden = !fits;
      if (fits) shown += 1;
    }
    count.textContent = shown === cards.length ? `all ${shown}` : `${shown} of ${cards.length}`;
    empty.hidden = shown > 0;
  }

  function remember() {
    const parts = new URLSearchParams();
    for (const name of names) {
      if (form.elements[name].value) parts.set(name, form.elements[name].value);
    }
    if (form.elements.rubric.checked) parts.set("rubric", "1");
    const text = parts.toString();
    try {
      history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
    } catch {
      // Some browsers refuse it for pages opened from a folder; the filters work all the same.
    }
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    for (const name of names) form.elements[name].value = parts.get(name) ?? "";
    form.elements.rubric.checked = parts.get("rubric") === "1";
    apply();
  }

  function step(by) {
    const visible = cards.filter((card) => !card.node.hidden).map((card) => card.node);
    const here = visible.findIndex((node) => node.contains(document.activeElement));
    const next = visible[here < 0 ? 0 : Math.min(Math.max(here + by, 0), visible.length - 1)];
    if (next) {
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "start" });
    }
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { apply(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
  window.addEventListener("hashchange", recall);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && event.target === form.elements.q) {
      form.elements.q.value = "";
      apply();
      remember();
    } else if (!typing && event.key === "/") {
      event.preventDefault();
      form.elements.q.focus();
    } else if (!typing && (event.key === "j" || event.key === "k")) {
      event.preventDefault();
      step(event.key === "j" ? 1 : -1);
    }
  });
  document.getElementById("bar").hidden = false;
  recall();
})();
"""
