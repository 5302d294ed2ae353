"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const SHOWN = 200; // rows of a table: a browser is slow to lay out twenty thousand
  const MANY = 1500; // marks from which on a canvas is quicker than SVG
  const NARROW = 560;
  const unpacked = new Map();
  const drawings = new Map();

  function rowsOf(key) {
    if (!unpacked.has(key)) {
      const { rows, columns } = page.rows[key];
      const names = Object.keys(columns);
      const read = names.map((name) => {
        const c = columns[name];
        return Array.isArray(c) ? (i) => c[i] : (i) => c.texts[c.at[i]];
      });
      unpacked.set(key, Array.from({ length: rows }, (_, i) =>
        Object.fromEntries(names.map((name, n) => [name, read[n](i)]))));
    }
    return unpacked.get(key);
  }

  function chosen(figure) {
    const switches = [...figure.querySelectorAll("fieldset[data-switch]")].map((set) =>
      [set, set.querySelector("input:checked").value]);
    const filters = [...figure.querySelectorAll("select[data-filter]")].map((select) =>
      [select.dataset.filter, select.value]);
    const values = switches.map(([, value]) => value);
    for (const [set] of switches) {
      const idle = set.dataset.idle.split(" ").filter(Boolean);
      set.disabled = idle.some((value) => values.includes(value));
    }
    return { key: values.join("|"), filters };
  }

  function shownRows(name, filters) {
    const rows = rowsOf(page.figures[name].rows);
    return rows.filter((row) => filters.every(([column, value]) => String(row[column]) === value));
  }

  function drawnRows(name, filters) {
    // a browser has no canvas for any number of lines; the note beside the figure says which these are
    const kept = Object.entries(page.figures[name].drawn ?? {}).map(([column, names]) => [column, new Set(names)]);
    return shownRows(name, filters).filter((row) => kept.every(([column, names]) => names.has(row[column])));
  }

  function styled(mode, width) {
    const config = structuredClone(page.config[mode]);
    if (width < NARROW) {
      config.axisY.labelLimit = 120;
      config.legend = { ...config.legend, columns: 2, labelLimit: 130, titleOrient: "top" };
    }
    return config;
  }

  const broken = (title) => {
    const middle = title.indexOf(" ", title.length / 2 - 6);
    return [title.slice(0, middle), title.slice(middle + 1)];
  };

  function narrowed(part) {
    // a third of a narrow page for names, titles in two lines, and every column keeps its name
    if (!part || typeof part !== "object") return;
    if (typeof part.title === "string" && part.title.length > 38) part.title = broken(part.title);
    if (part.axis?.labelLimit) part.axis.labelLimit = Math.min(part.axis.labelLimit, 120);
    if (["run", "name", "row"].includes(part.field) && part.type === "nominal" && part.axis !== undefined) {
      part.axis = { labelExpr: "truncate(datum.value, 20, 'center', '…')", ...part.axis };
    }
    if (part.axis?.labelAngle) Object.assign(part.axis, { labelAngle: -90, labelFontSize: 10 });
    Object.values(part).forEach(narrowed);
  }

  function sized(spec, width) {
    const fitted = structuredClone(spec);
    if (width < NARROW) narrowed(fitted);
    return { ...fitted, autosize: { type: "fit-x", contains: "padding" } };
  }

  async function draw(name, mode) {
    try {
      await tryDraw(name, mode);
    } catch (error) {
      // the other figures are not to go with this one
      drawings.delete(name);
      document.getElementById(`chart-${name}`).removeAttribute("role"); // what is in an image is not read out
      const why = `This figure could not be drawn: ${error.message}; its rows are in the table and the CSV.`;
      document.getElementById(`chart-${name}`).firstElementChild.replaceChildren(element("p", why, { class: "empty" }));
      console.error(name, error);
    }
  }

  async function tryDraw(name, mode = dark.matches ? "dark" : "light") {
    const figure = document.getElementById(name);
    const place = document.getElementById(`chart-${name}`);
    const { key, filters } = chosen(figure);
    const rows = drawnRows(name, filters);
    const width = place.clientWidth;
    const spec = { ...sized(page.figures[name].specs[key], width), data: { values: rows } };
    // Vega puts its own words on the element that it draws in, so that is not the one with ours
    drawings.get(name)?.finalize();
    place.setAttribute("role", "img");
    drawings.set(name, await window.vegaEmbed(place.firstElementChild, spec, {
      mode: "vega-lite", actions: false, config: styled(mode, width), tooltip: { theme: mode },
      renderer: rows.length > MANY ? "canvas" : "svg",
    }));
    figure.dataset.drawn = [key, ...filters.map(([, value]) => value)].join("|");
    figure.dataset.mode = mode;
    const scroll = place.parentElement;
    scroll.toggleAttribute("tabindex", false);
    if (scroll.scrollHeight > scroll.clientHeight) scroll.tabIndex = 0; // not every browser does so by itself
  }

  function announce(figure) {
    const words = [...figure.querySelectorAll("fieldset:not(:disabled)")].map((set) =>
      `${set.querySelector("legend").textContent}: ${set.querySelector("input:checked + span").textContent}`);
    figure.querySelectorAll("label.select").forEach((label) =>
      words.push(`${label.firstChild.textContent.trim()}: ${label.querySelector("select").value}`));
    figure.querySelector(".status").textContent = words.length ? `Shown: ${words.join("; ")}` : "";
  }

  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  function csv(name) {
    const { rows: key } = page.figures[name];
    const names = Object.keys(page.rows[key].columns);
    const lines = rowsOf(key).map((row) => names.map((column) => quoted(row[column])).join(","));
    return [names.join(","), ...lines, ""].join("\r\n");
  }

  function download(name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(name)], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  }

  function fillTable(figure) {
    const place = figure.querySelector(".as-table .rows");
    const rows = shownRows(figure.id, chosen(figure).filters);
    const names = Object.keys(page.rows[page.figures[figure.id].rows].columns);
    const numeric = (name) => rows.some((row) => typeof row[name] === "number");
    const table = element("table", null);
    const head = table.createTHead().insertRow();
    const style = Object.fromEntries(names.map((n) => [n, numeric(n) ? { class: "number" } : {}]));
    names.forEach((n) => head.append(element("th", n.replaceAll("_", " "), { scope: "col", ...style[n] })));
    const body = table.createTBody();
    for (const row of rows.slice(0, SHOWN)) {
      const line = body.insertRow();
      names.forEach((n) => line.append(element("td", row[n] ?? "–", style[n])));
    }
    const more = rows.length - SHOWN;
    place.replaceChildren(table, ...(more > 0 ? [element("p", `${more} more ${more === 1 ? "row is" : "rows are"} in the CSV.`)] : []));
  }

  function wire(figure) {
    figure.addEventListener("change", async () => {
      await draw(figure.id);
      announce(figure);
      if (figure.querySelector(".as-table[open]")) fillTable(figure);
    });
    figure.querySelector(".as-table")?.addEventListener("toggle", (event) => {
      if (event.target.open) fillTable(figure);
    });
  }

  const drawn = Object.keys(page.figures).filter((name) => document.getElementById(`chart-${name}`));
  async function drawAll(mode) {
    for (const name of drawn) await draw(name, mode);
  }

  document.querySelectorAll("button.csv").forEach((button) =>
    button.addEventListener("click", () => download(button.dataset.of)));
  drawn.forEach((name) => wire(document.getElementById(name)));
  dark.addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => drawAll("light"));
  addEventListener("afterprint", () => drawAll());
  let known = innerWidth;
  addEventListener("resize", () => {
    // below this width names are shorter, so crossing it means drawing anew; else Vega follows
    if ((known < NARROW) !== (innerWidth < NARROW)) drawAll();
    known = innerWidth;
  });
  drawAll().then(() => {
    drawn.forEach((name) => announce(document.getElementById(name)));
    document.documentElement.dataset.ready = "yes";
  });
  window.rlsparse = { csv };
})();
